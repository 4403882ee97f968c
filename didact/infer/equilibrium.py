"""The consensus game: a generator and a discriminator who agree as far as each stays near what it said at first.

A generator G is told whether to be correct (v) and answers one of K candidates y; a discriminator D sees y and guesses
v. Both win where the guess is right, and each is held to its first policy by lam. They play T rounds of

    Q_G(y|v) = 1/(2t) sum_{s<=t} D_s(v|y)        Q_D(v|y) = 1/(2t) sum_{s<=t} G_s(y|v)
    G_{t+1}(y|v) ~ exp((Q_G + lam_g log G_1) / (1/(eta_g t) + lam_g))      over y, and D likewise over v

and the last policies count. Arrays hold any number of questions; nothing is drawn. Pure numpy, without torch.

Source: Jacob et al. 2023, arXiv:2310.09139.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from didact.bounds import Count, NonNegative, Positive

Floats = NDArray[np.float64]
FLOOR = 1e-12  # of a probability in the first policies
LEAST = -1e6  # nats; what a model finds impossible
SAFE = 300.0  # logits up to here need no care before exp
BLOCK = 1 << 16  # candidates at a time: memory does not grow with the questions


@dataclass(frozen=True, kw_only=True)
class Game:
    """How the game is played; the defaults are the paper's.

    Args:
        steps: T, rounds.
        eta_g: the generator's learning rate.
        eta_d: the discriminator's.
        lam_g: how strongly the generator is held to its first policy. With 0.1 the end is near 0 and 1, which ranks
            well and is no probability; with 1 or more it stays calibrated.
        lam_d: the same for the discriminator.
        normalise: first policies from the model's scores by dividing by the sum over the other axis too (`both`),
            which takes out how frequent a candidate is whatever is asked and how ready the model is to say yes; or
            over the `own` axis alone.
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
    """First policies from log-probs: `g (questions, 2, K)` of each candidate as a correct and as an incorrect answer,
    `d (questions, K, 2)` of the verdicts correct and incorrect on it; NaN where there is no candidate."""
    g, d = (np.asarray(x, np.float64) for x in (g, d))
    real, g, d = ~np.isnan(g), np.fmax(g, LEAST), np.fmax(d, LEAST)
    if normalise == "both":
        d = d - _total(np.where(np.isnan(d) | ~real[:, 0, :, None], -np.inf, d), 1)
        g = g - _total(g, 1)
    g = np.where(real, g, -np.inf)
    with np.errstate(invalid="ignore"):  # a question without candidates
        made = np.exp(g - _total(g, 2)), np.exp(d - _total(d, 2))
    there = real, real[:, 0, :, None]
    return Policies(*(np.where(t, np.maximum(p, FLOOR), np.nan) for p, t in zip(made, there, strict=True)))


def solve(start: Policies, game: Game | None = None) -> Policies:
    """The policies after all rounds."""
    game = game or Game()
    out = Policies(*map(np.empty_like, start))
    size = max(1, BLOCK // start.generator.shape[2])
    for first in range(0, len(start.generator), size):
        at = slice(first, first + size)
        # Questions come last, so that sums over candidates are sums of rows.
        g, d = start.generator[at].transpose(1, 2, 0), start.discriminator[at].transpose(1, 2, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # questions without candidates
            g, d = _played(g, d, game)
        out.generator[at], out.discriminator[at] = g.transpose(2, 0, 1), d.transpose(2, 0, 1)
    real = np.isnan(start.generator), np.isnan(start.discriminator)
    return Policies(*(np.where(no, np.nan, p) for no, p in zip(real, out, strict=True)))


def residual(start: Policies, end: Policies, game: Game) -> Floats:
    """How far each question is from where the game would stand still, the largest difference of a probability:
    `G ~ G_1 exp(D / (2 lam_g))`, `D ~ D_1 exp(G / (2 lam_d))`. It falls like 1 / T; lam must be above 0."""
    g = np.log(start.generator) + end.discriminator.transpose(0, 2, 1) / (2 * game.lam_g)
    d = np.log(start.discriminator) + end.generator.transpose(0, 2, 1) / (2 * game.lam_d)
    still = [np.exp(x - _total(np.where(np.isnan(x), -np.inf, x), 2)) for x in (g, d)]
    off = [np.nanmax(np.abs(x - y), axis=(1, 2)) for x, y in zip(still, end, strict=True)]
    return np.asarray(np.maximum(*off))


def _played(g: Floats, d: Floats, game: Game) -> tuple[Floats, Floats]:
    """All rounds of some questions: `g (2, K, questions)`, `d (K, 2, questions)`."""
    real = ~np.isnan(g[0])
    g, sure = np.where(real, g, 0.0), np.where(real, d[:, 0], 0.5)
    anchor_g = np.where(real, game.lam_g * np.log(np.where(real, g, 1.0)), -np.inf)
    anchor_d = game.lam_d * (np.log(sure) - np.log(np.where(real, d[:, 1], 0.5)))
    said, guessed = np.zeros_like(sure), np.zeros_like(sure)  # sums of G(correct) - G(incorrect), of D(correct)
    for t in range(1, game.steps + 1):
        said += g[0]
        said -= g[1]
        guessed += sure
        g = generator(guessed, anchor_g, t, 1 / (game.eta_g * t) + game.lam_g)
        sure = discriminator(said, anchor_d, t, 1 / (game.eta_d * t) + game.lam_d)
    return g, np.stack([sure, 1 - sure], 1)


def generator(guessed: Floats, anchor: Floats, t: int, temperature: float) -> Floats:
    """`(2, K, questions)`, the answer to t rounds of D(correct), their sum `(K, questions)`; held by lam log G_1."""
    out = anchor * (1 / temperature)
    if 0.5 / temperature > SAFE:
        out += np.multiply.outer((0.5, -0.5), guessed) / (t * temperature)
        out -= out.max(1, keepdims=True)
    else:
        heard = guessed * (0.5 / (t * temperature))
        out[0] += heard
        out[1] -= heard  # D(incorrect) is 1 - D(correct), and what all candidates share is nothing
    np.exp(out, out=out)
    out *= 1 / out.sum(1, keepdims=True)
    return out


def discriminator(said: Floats, anchor: Floats, t: int, temperature: float) -> Floats:
    """D(correct) `(K, questions)`, the answer to t rounds of G(correct) - G(incorrect), their sum; `anchor` is lam
    times D_1's logit."""
    out = said * (-0.5 / (t * temperature))
    out -= anchor * (1 / temperature)
    if 0.5 / temperature > SAFE:
        np.clip(out, -2 * SAFE, 2 * SAFE, out=out)
    np.exp(out, out=out)
    out += 1.0
    return np.reciprocal(out, out=out)


def _total(logs: Floats, axis: int) -> Floats:
    """Their sum as probabilities, in logs; the axis stays."""
    return np.asarray(np.logaddexp.reduce(logs, axis=axis, keepdims=True))
