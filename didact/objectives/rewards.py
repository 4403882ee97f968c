"""Calibrate and transform rewards for the way a policy will be decoded (InfAlign, Balashankar et al., 2024).

The calibrated reward C is the share of the reference's answers to the same prompt with a lower reward, ties
counting half: in [0, 1], of mean 1/2 under the reference, unchanged by any increasing map of the reward. A decoding
procedure turns a policy into `T(pi)(y) ∝ pi(y) g(C_pi(y))`; best-of-N has g(u) = N u^(N-1). For continuous C the policy
`ref exp(Phi(C) / beta)` gives C the density `f ∝ exp(Phi / beta)`, whatever the prompt, and all win rates and the KL
follow from f: see `Curve`. Densities live on a grid of midpoints of [0, 1]. Numpy in float64, without gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from didact.types import UserError

Array = Any  # of float64
Transform = Literal["identity", "log", "exp", "fixed-point"]
Calibration = Literal["prompt", "global", "none"]
GRID = 2000


@dataclass(frozen=True)
class Procedure:
    """A decoding procedure, applied to a policy at inference.

    Args:
        name: `sample`, `bon:4`, `won:4`, or any label of a custom one.
        g: density on [0, 1] that reweighs answers by their calibrated reward, integral 1.
        cdf: its integral from 0.
        n: answers drawn; negative where the worst is kept.
    """

    name: str
    g: Callable[[Array], Array]
    cdf: Callable[[Array], Array]
    n: int = 1


@functools.cache
def procedure(name: str) -> Procedure:
    """Return a procedure by name: `sample`, `bon:N` (best of N) or `won:N` (worst of N).

    Raises:
        UserError: any other name.
    """
    kind, _, number = name.partition(":")
    if name == "sample":
        return Procedure(name, np.ones_like, lambda u: u)
    if kind not in ("bon", "won") or not number.isdigit() or int(number) < 1:
        raise UserError(f"decoding '{name}': must be sample, bon:N or won:N, as in bon:4")
    n = int(number)
    if kind == "bon":
        return Procedure(name, lambda u: n * u ** (n - 1), lambda u: u**n, n)
    return Procedure(name, lambda u: n * (1 - u) ** (n - 1), lambda u: 1 - (1 - u) ** n, -n)


def custom(name: str, g: Callable[[Array], Array]) -> Procedure:
    """Build a procedure from any density g on [0, 1]; it is normalised, and integrated numerically.

    Raises:
        ValueError: g is negative somewhere or zero everywhere.
    """
    u = grid()
    values = np.asarray(g(u), dtype=float)
    if (values < 0).any() or not values.sum() > 0:
        raise ValueError(f"procedure '{name}': g must not be negative, nor zero everywhere")
    total = values.mean()
    edges = np.linspace(0, 1, GRID + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(values) / values.sum()])
    return Procedure(name, lambda x: np.asarray(g(x)) / total, lambda x: np.interp(x, edges, cumulative))


def calibrate(reward: Array, reference: Array, weight: Array | None = None) -> Array:
    """C: the share of worse reference answers plus half of the equal ones, `(..., n), (..., K) -> (..., n)`.

    Args:
        reward: rewards of the answers.
        reference: rewards of the reference's answers to the same prompts.
        weight: probabilities of the reference's answers, `(..., K)`; equal by default.
    """
    if weight is None and np.ndim(reference) == 1:  # avoids an (n, K) table, which is too large for many references
        sorted_reference = np.sort(np.asarray(reference, float))
        return sum(np.searchsorted(sorted_reference, reward, side) for side in ("left", "right")) / (
            2 * len(sorted_reference)
        )
    r, z = np.asarray(reward, float)[..., :, None], np.asarray(reference, float)[..., None, :]
    worse = (z < r) + 0.5 * (z == r)
    if weight is None:
        return worse.mean(-1)
    return (worse * np.asarray(weight, float)[..., None, :]).sum(-1)


def calibrated(reward: Array, reference: Array, by: Calibration) -> Array:
    """C of answers `(prompts, n)`, calibrated by the reference's rewards `(prompts, k)` on the same `prompt` or on all
    prompts (`global`); `none` returns the rewards unchanged."""
    if by == "none":
        return reward
    if by == "global":
        return calibrate(np.ravel(reward), np.ravel(reference)).reshape(np.shape(reward))
    return calibrate(reward, reference)


def transform(u: Array, name: Transform, t: float = 10.0, floor: float = 0.0) -> Array:
    """Phi of calibrated rewards: `identity` u, `log` log max(u, floor), `exp` sign(t) exp(t u) over its maximum.

    exp is divided by its largest magnitude on [0, 1], which only rescales beta: with e^10 any step would diverge. At
    t = 0 it is the identity, its limit up to a constant and a scale, which is the best transform for plain sampling.

    Raises:
        ValueError: `fixed-point`, which `fixed_point` solves for.
    """
    u = np.asarray(u, dtype=float)
    if name == "identity" or (name == "exp" and t == 0):
        return u
    if name == "log":
        return np.log(np.maximum(u, floor))
    if name == "exp":
        return np.sign(t) * np.exp(t * u - max(t, 0.0))
    raise ValueError(f"transform '{name}' is solved for, not written down")


def recommended(to: Procedure) -> float:
    """The exponent the paper recommends: 5 for N = 2, 10 for N = 4, negative for the worst of N; 0 for sampling."""
    return 2.5 * to.n if abs(to.n) > 1 else 0.0


# --- continuous C ----------------------------------------------------------------------------


def grid() -> Array:
    """Midpoints of `GRID` equal parts of [0, 1]."""
    return (np.arange(GRID) + 0.5) / GRID


@dataclass(frozen=True)
class Curve:
    """A policy's density f and distribution function F of C, on the grid."""

    density: Array
    cdf: Array

    @property
    def kl(self) -> float:
        """KL to the reference, nats."""
        f = self.density
        return float(np.mean(f * np.log(np.maximum(f, 1e-300))))

    def win_rate(self, to: Procedure) -> float:
        """Win rate against the reference, both decoded by the procedure: `1 - int G(F(u)) g(u) du`."""
        return float(1 - np.mean(to.cdf(self.cdf) * to.g(grid())))


def curve(phi: Array, beta: float) -> Curve:
    """The curve of the policy `ref exp(Phi / beta)`, with `phi (GRID,)` the values of Phi on the grid."""
    scaled = np.asarray(phi, float) / beta
    f = np.exp(scaled - scaled.max())
    f = f / f.mean()
    return Curve(f, (np.cumsum(f) - 0.5 * f) / GRID)


def gradient(now: Curve, to: Procedure) -> Array:
    """Derivative of the win rate by the density at every u, `-int_v^1 g(F(u)) g(u) du` on the grid."""
    step = to.g(now.cdf) * to.g(grid()) / GRID
    return -(np.cumsum(step[::-1])[::-1] - 0.5 * step)


@functools.lru_cache(maxsize=256)
def _solved(to: Procedure, beta: float, start: float) -> Array:
    phi, beta_now = gradient(curve(np.zeros(GRID), 1.0), to), max(start, beta)
    while True:
        eta = min(0.5, 0.5 * beta_now)  # larger steps oscillate, around a wrong solution
        for _ in range(20_000):
            change = gradient(curve(phi, beta_now), to) - phi
            phi = phi + eta * change
            if np.abs(change).max() < 1e-9:
                break
        if beta_now <= beta:
            return phi
        beta_now = max(beta, 0.7 * beta_now)  # worst-of-N is not concave: follow the solution from a large beta down


def fixed_point(to: Procedure, beta: float, start: float = 2.0) -> Array:
    """Phi on the grid at which `ref exp(Phi / beta)` maximises the win rate under the procedure minus beta KL.

    Damped fixed-point iteration Phi <- `gradient`, annealed from `start` down to beta.
    """
    if not beta > 0:
        raise UserError(f"beta = {beta}: must be above 0")
    return _solved(to, beta, start)


def at_kl(phi: Array, target: float) -> tuple[float, Curve]:
    """Find by bisection the beta at which the policy's KL to the reference is `target` nats, and the curve."""
    phi = np.asarray(phi, float) / np.abs(phi).max()
    low, high = -12.0, 12.0  # bounds of log beta
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if curve(phi, np.exp(middle)).kl < target else (middle, high)
    return float(np.exp(high)), curve(phi, np.exp(high))
