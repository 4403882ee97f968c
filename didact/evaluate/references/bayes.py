"""Exact Bayes predictors of function classes and their mixtures, for all prompts and prefixes at once.

A predictor maps `x (B, T, d)`, `y (B, T)` to a `Posterior`: the posterior mean of every y_t given the rows before it,
and the log predictive density of y_t. The sum of the latter over a prefix is its evidence, so a mixture is

    mean = sum_k beta_k mean_k,    beta_k ~ alpha_k exp(sum_{s<t} logp_k,s)

in float64. `exact` returns the predictor of a function class if there is one in closed form.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from didact.learn import functions

TINY = 1e-10  # stands in for a variance of 0, when a noise-free function is determined
SPANNED = 1e-13  # share of a row's square outside the span of those before; less is rounding
CHUNK = 2**25  # numbers per chunk


class Posterior(NamedTuple):
    """`mean (B, T)` of y_t given the rows before, `logp (B, T)` of y_t, and of mixtures `beta (B, T, K)`."""

    mean: Tensor
    logp: Tensor
    beta: Tensor | None = None


Predictor = Callable[[Tensor, Tensor], Posterior]


def gaussian(
    mean: Any = 0.0, std: Any = 1.0, noise: float = 0.0, features: Callable[[Any], Any] = lambda x: x
) -> Predictor:
    """`w ~ N(mean, diag std^2)`, `y = w . phi(x) + noise`: the posterior after every row, one row at a time.

    With mean 0 it is ridge regression of strength `noise^2 / std^2`; without noise least squares of smallest norm,
    `w = mean + X^+ (y - X mean)`. A row costs F^2: the covariance is updated, never inverted.
    """

    def predict(x: Tensor, y: Tensor) -> Posterior:
        phi, target = features(x.double()), y.double()
        rows, length, width = phi.shape
        m = torch.as_tensor(mean, dtype=torch.float64).broadcast_to(width)
        s = torch.as_tensor(std, dtype=torch.float64).broadcast_to(width)
        phi, offset = phi * s, phi @ m  # w = m + s z with z ~ N(0, I)
        z, p = phi.new_zeros(rows, width), torch.eye(width, dtype=torch.float64).repeat(rows, 1, 1)
        means, density = [], []
        for t in range(length):
            row = phi[:, t]
            gain = (p @ row[..., None])[..., 0]
            spread = (gain * row).sum(-1)
            # Without noise a row in the span of those before carries no information: its remainder is rounding.
            spread = torch.where(spread > SPANNED * row.square().sum(-1), spread, 0.0)
            variance = spread + noise**2
            guess = offset[:, t] + (z * row).sum(-1)
            means.append(guess)
            density.append(log_normal(target[:, t], guess, variance.clamp(min=TINY)))
            step = torch.where(variance[:, None] > 0, gain / variance[:, None], 0.0)
            step = torch.where(spread[:, None] > 0, step, 0.0)
            z = z + step * (target[:, t] - guess)[:, None]
            p = p - step[:, :, None] * gain[:, None, :]
        return Posterior(torch.stack(means, 1), torch.stack(density, 1))

    return predict


def log_normal(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log density of N(mean, variance)."""
    return -0.5 * ((value - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def pool(weights: Any, noise: float) -> Predictor:
    """dMMSE: one of these weights `(n, d)`, equally likely, `sum_j softmax_j(-|y - X w_j|^2 / 2 noise^2) w_j . x`.

    Without noise, its limit: the mean over those that fit the rows before best.
    """
    w = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
    variance = max(noise, math.sqrt(TINY)) ** 2

    def predict(x: Tensor, y: Tensor) -> Posterior:
        parts = []
        rows = max(1, CHUNK // (x.shape[1] * len(w)))
        for inputs, target in zip(x.double().split(rows), y.double().split(rows), strict=True):
            guess = inputs @ w.T
            logp = log_normal(target[..., None], guess, torch.tensor(variance, dtype=torch.float64))
            belief = before(logp).softmax(-1)
            parts.append(((belief * guess).sum(-1), (belief.log() + logp).logsumexp(-1)))
        return Posterior(*(torch.cat(p) for p in zip(*parts, strict=True)))

    return predict


def mixture(parts: Sequence[Predictor], alpha: Any) -> Predictor:
    """The posterior of a mixture: every part's, weighted by its evidence."""
    prior = torch.as_tensor(np.asarray(alpha, float)).log()

    def predict(x: Tensor, y: Tensor) -> Posterior:
        posteriors = [part(x, y) for part in parts]
        means, logp = torch.stack([f.mean for f in posteriors], -1), torch.stack([f.logp for f in posteriors], -1)
        beta = (prior + before(logp)).log_softmax(-1)
        return Posterior((beta.exp() * means).sum(-1), (beta + logp).logsumexp(-1), beta.exp())

    return predict


def before(logp: Tensor) -> Tensor:
    """Sums over the positions before each: `(B, T, K)`."""
    return torch.nn.functional.pad(logp.cumsum(1), (0, 0, 1, 0))[:, :-1]


def dirichlet(labels: Tensor, classes: int, prior: float = 1.0) -> Tensor:
    """Dirichlet-categorical: probabilities of every label given those before, `(n_c + a) / (n + C a)`: `(B, T, C)`.

    With two labels it is the beta-binomial.
    """
    onehot = torch.nn.functional.one_hot(labels, classes).double()
    counts = before(onehot)
    return (counts + prior) / (counts.sum(-1, keepdim=True) + classes * prior)


@functools.singledispatch
def exact(law: Any) -> Predictor | None:
    """The Bayes predictor of a function class or a mixture; None if there is none in closed form."""
    return None


@exact.register
def _(law: functions.Gaussian) -> Predictor:
    mean, std = law.prior()
    return gaussian(mean, std, law.noise, law.features)


@exact.register
def _(law: functions.Pool) -> Predictor:
    return pool(law.weights, law.noise)


@exact.register
def _(law: functions.Signs) -> Predictor | None:
    if law.dim > 14:
        return None
    every = np.array(list(itertools.product((-1.0, 1.0), repeat=law.dim))) / math.sqrt(law.dim)
    return pool(every, law.noise)


@exact.register
def _(law: functions.Sparse) -> Predictor | None:
    sets = list(itertools.combinations(range(law.dim), law.active))
    if len(sets) > 600:
        return None
    parts = [gaussian(0.0, np.isin(np.arange(law.dim), active) * 1.0, law.noise) for active in sets]
    return mixture(parts, [1 / len(sets)] * len(sets))


@exact.register
def _(law: functions.Mixture) -> Predictor | None:
    parts = [exact(part) for part in law.parts]
    if any(part is None for part in parts):
        return None
    return mixture([p for p in parts if p is not None], law.shares)
