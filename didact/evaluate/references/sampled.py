"""The posterior mean under a Laplace prior, for which there is no closed form: by Gibbs sampling, all prefixes at once.

A Laplace prior of scale b is a normal one whose variance is itself random, `w_j ~ N(0, v_j)`, `v_j ~ Exp(1 / (2 b^2))`.
Given the variances the weights are normal, and given the weights `1 / v_j` is inverse Gaussian. The average is over
the mean of the weights given each draw of the variances, which varies less than the weights do.

Source: Park & Casella 2008, The Bayesian Lasso; Panwar et al. 2024, openreview HX5ujdsSon, appendix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from didact.evaluate.references import search

LEAST = 1e-6  # least size of a weight: at 0 its variance would be 0 too
CHUNK = 2**24  # numbers per chunk


def laplace(
    x: Tensor, y: Tensor, scale: float, noise: float, draws: int = 200, burn: int = 50, seed: int = 0
) -> Tensor:
    """`E[w . x_t | rows before t]` with `w_j ~ Laplace(0, scale)` and normal noise: `(B, T)`.

    Args:
        x: inputs `(B, T, d)`.
        y: targets `(B, T)`.
        scale: of the prior.
        noise: standard deviation of the targets; more than 0, for without it the chain does not move.
        draws: number of draws to average.
        burn: number of burn-in draws.
        seed: of the chain.
    """
    chunk = max(1, CHUNK // (x.shape[1] * x.shape[2] ** 2))
    rng = np.random.default_rng(seed)
    parts = zip(x.double().split(chunk), y.double().split(chunk), strict=True)
    return torch.cat([_means(a, b, scale, noise, draws, burn, rng).mul(a).sum(-1) for a, b in parts])


def _means(x: Tensor, y: Tensor, scale: float, noise: float, draws: int, burn: int, rng: np.random.Generator) -> Tensor:
    """The posterior mean of the weights before every row, `(B, T, d)`."""
    gram, product, _ = search.prefixes(x, y)
    gram, product = gram / noise**2, (product / noise**2)[..., None]
    precision = torch.full_like(product[..., 0], 1 / (2 * scale**2))
    total = torch.zeros_like(precision)
    for draw in range(burn + draws):
        root = torch.linalg.cholesky(gram + torch.diag_embed(precision))
        mean = torch.cholesky_solve(product, root)
        if draw >= burn:
            total += mean[..., 0]
        z = torch.from_numpy(rng.standard_normal(mean.shape))
        w = mean + torch.linalg.solve_triangular(root.mT, z, upper=True)
        magnitude = w[..., 0].abs().clamp(min=LEAST).numpy()
        precision = torch.from_numpy(rng.wald(1 / (scale * magnitude), 1 / scale**2)).clamp(min=1e-12)
    return total / draws
