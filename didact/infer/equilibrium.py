"""The consensus game: generator and discriminator seek agreement, each regularised towards its initial policy.

The generator G receives v (be correct or incorrect) and picks one of K candidates y; the discriminator D sees y and
guesses v. Both win if the guess is right; lam weighs the pull to the initial policies. They play T rounds of

    Q_G(y|v) = 1/(2t) sum_{s<=t} D_s(v|y)        Q_D(v|y) = 1/(2t) sum_{s<=t} G_s(y|v)
    G_{t+1}(y|v) ~ exp((Q_G + lam_g log G_1) / (1/(eta_g t) + lam_g))      over y, and D likewise over v

and the final policies are the result. Arrays hold any number of questions; nothing is random. Numpy only, no torch.

Source: Jacob et al. 2023, arXiv:2310.09139.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from didact.bounds import Count, NonNegative, Positive

Floats = NDArray[np.float64]
FLOOR = 1e-12  # of probabilities in the initial policies
LEAST = -1e6  # nats: stands in for lower log-probs, -inf included
SAFE = 300.0  # logits up to this size cannot overflow exp
BLOCK = 1 << 16  # candidates solved together: bounds the memory for any number of questions


@dataclass(frozen=True, kw_only=True)
class Game:
    """Hyperparameters of the game; the defaults are the paper's.

    Args:
        steps: T, rounds.
        eta_g: the generator's learning rate.
        eta_d: the discriminator's.
        lam_g: regularisation of the generator towards its initial policy. With 0.1 the final policy is close to 0 and
            1, which ranks well but is not calibrated; with 1 or more it stays calibrated.
        lam_d: the same for the discriminator.
        normalise: initial policies from the model's scores, divided by the sum over the other axis too (`both`), which
            removes a candidate's frequency under either request and the model's bias to yes; or over the `own` axis
            alone.
    """

    steps: Count = 5000
    eta_g: Positive = 0.1
    eta_d: Positive = 0.1
    lam_g: NonNegative = 0.1
    lam_d: NonNegative = 0.1
    normalise: Literal["both", "own"] = "both"


class Policies(NamedTuple):
    """`generator (questions, 2, K)`, over K; `discriminator (questions, K, 2)`, over the 2: correct, incorrect.

    NaN where a question has fewer than K candidates.
    """

    generator: Floats
    discriminator: Floats


def initial(g: Any, d: Any, normalise: Literal["both", "own"] = "both") -> Policies:
    """Return the initial policies from log-probs: `g (questions, 2, K)` of each candidate as a correct and an incorrect
    answer, `d (questions, K, 2)` of the verdicts correct and incorrect on it; NaN where there is no candidate."""
    g, d = (np.asarray(x, np.float64) for x in (g, d))
    real, g, d = ~np.isnan(g), np.fmax(g, LEAST), np.fmax(d, LEAST)
    if normalise == "both":
        d = d - _total(np.where(np.isnan(d) | ~real[:, 0, :, None], -np.inf, d), 1)
        g = g - _total(g, 1)
    g = np.where(real, g, -np.inf)
    with np.errstate(invalid="ignore"):  # a question without candidates
        policies = np.exp(g - _total(g, 2)), np.exp(d - _total(d, 2))
    masks = real, real[:, 0, :, None]
    return Policies(*(np.where(mask, np.maximum(p, FLOOR), np.nan) for p, mask in zip(policies, masks, strict=True)))


def solve(start: Policies, game: Game | None = None) -> Policies:
    """Return the policies after all rounds."""
    game = game or Game()
    out = Policies(*map(np.empty_like, start))
    size = max(1, BLOCK // start.generator.shape[2])
    for first in range(0, len(start.generator), size):
        block = slice(first, first + size)
        # Questions come last, so that sums over candidates are sums of rows.
        g, d = start.generator[block].transpose(1, 2, 0), start.discriminator[block].transpose(1, 2, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # questions without candidates
            g, d = _play_rounds(g, d, game)
        out.generator[block], out.discriminator[block] = g.transpose(2, 0, 1), d.transpose(2, 0, 1)
    missing = np.isnan(start.generator), np.isnan(start.discriminator)
    return Policies(*(np.where(mask, np.nan, policy) for mask, policy in zip(missing, out, strict=True)))


def residual(start: Policies, end: Policies, game: Game) -> Floats:
    """Return each question's distance from the fixed point, the largest difference of a probability from
    `G ~ G_1 exp(D / (2 lam_g))`, `D ~ D_1 exp(G / (2 lam_d))`. It falls like 1 / T; lam must be above 0."""
    g = np.log(start.generator) + end.discriminator.transpose(0, 2, 1) / (2 * game.lam_g)
    d = np.log(start.discriminator) + end.generator.transpose(0, 2, 1) / (2 * game.lam_d)
    targets = [np.exp(x - _total(np.where(np.isnan(x), -np.inf, x), 2)) for x in (g, d)]
    gaps = [np.nanmax(np.abs(x - y), axis=(1, 2)) for x, y in zip(targets, end, strict=True)]
    return np.asarray(np.maximum(*gaps))


def _play_rounds(g: Floats, d: Floats, game: Game) -> tuple[Floats, Floats]:
    """Play all rounds of a block of questions: `g (2, K, questions)`, `d (K, 2, questions)`."""
    real = ~np.isnan(g[0])
    g, d_correct = np.where(real, g, 0.0), np.where(real, d[:, 0], 0.5)
    anchor_g = np.where(real, game.lam_g * np.log(np.where(real, g, 1.0)), -np.inf)
    anchor_d = game.lam_d * (np.log(d_correct) - np.log(np.where(real, d[:, 1], 0.5)))
    g_sum, d_sum = np.zeros_like(d_correct), np.zeros_like(d_correct)  # of G(correct) - G(incorrect), of D(correct)
    for t in range(1, game.steps + 1):
        g_sum += g[0]
        g_sum -= g[1]
        d_sum += d_correct
        g = generator(d_sum, anchor_g, t, 1 / (game.eta_g * t) + game.lam_g)
        d_correct = discriminator(g_sum, anchor_d, t, 1 / (game.eta_d * t) + game.lam_d)
    return g, np.stack([d_correct, 1 - d_correct], 1)


def generator(d_sum: Floats, anchor: Floats, t: int, temperature: float) -> Floats:
    """Return G `(2, K, questions)` for `d_sum (K, questions)` over t rounds of D(correct); `anchor` is lam log G_1."""
    out = anchor * (1 / temperature)
    if 0.5 / temperature > SAFE:
        out += np.multiply.outer((0.5, -0.5), d_sum) / (t * temperature)
        out -= out.max(1, keepdims=True)
    else:
        payoff = d_sum * (0.5 / (t * temperature))
        out[0] += payoff
        out[1] -= payoff  # D(incorrect) is 1 - D(correct), and a constant over the candidates cancels
    np.exp(out, out=out)
    out *= 1 / out.sum(1, keepdims=True)
    return out


def discriminator(g_sum: Floats, anchor: Floats, t: int, temperature: float) -> Floats:
    """Return D(correct) `(K, questions)` for `g_sum` over t rounds of G(correct) - G(incorrect); `anchor` is lam times
    D_1's logit."""
    out = g_sum * (-0.5 / (t * temperature))
    out -= anchor * (1 / temperature)
    if 0.5 / temperature > SAFE:
        np.clip(out, -2 * SAFE, 2 * SAFE, out=out)
    np.exp(out, out=out)
    out += 1.0
    return np.reciprocal(out, out=out)


def _total(logs: Floats, axis: int) -> Floats:
    """Log-sum-exp over an axis, which is kept."""
    return np.asarray(np.logaddexp.reduce(logs, axis=axis, keepdims=True))
