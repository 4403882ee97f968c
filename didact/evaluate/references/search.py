"""References found by optimisation, for all prompts and prefixes: the lasso, the smallest largest weight, the
smallest nuclear norm; and nearest neighbours. `x (B, T, d)`, `y (B, T)`; predictions of y_t from the rows before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def prefixes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrices `(B, T, d, d)`, products `(B, T, d)` and squares `(B, T)` of the rows before every position."""
    x, y = x.double(), y.double()
    parts = (x[..., :, None] * x[..., None, :], x * y[..., None], y.square())
    gram, product, square = (torch.cat([torch.zeros_like(p[:, :1]), p.cumsum(1)[:, :-1]], 1) for p in parts)
    return gram, product, square


def lasso(x: Tensor, y: Tensor, alpha: float = 0.01, sweeps: int = 2000, tolerance: float = 1e-9) -> Tensor:
    """`argmin_w |y - X w|^2 / (2 n) + alpha |w|_1` by coordinate descent, every prefix of every prompt at once.

    It stops when no weight changes by more than the tolerance. Without rows the weights are zero.
    """
    gram, product, _ = prefixes(x, y)
    n = torch.arange(x.shape[1], dtype=torch.float64).clamp(min=1)[:, None]
    w = torch.zeros_like(product)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    for _ in range(sweeps):
        old = w.clone()
        for j in range(x.shape[-1]):
            partial = product[..., j] - (gram[..., j, :] * w).sum(-1) + diagonal[..., j] * w[..., j]
            shrunk = partial.sign() * (partial.abs() - alpha * n[..., 0]).clamp(min=0)
            w[..., j] = torch.where(diagonal[..., j] > 0, shrunk / diagonal[..., j].clamp(min=1e-300), 0.0)
        if (w - old).abs().max() < tolerance:
            break
    return (w * x.double()).sum(-1)


def min_infinity_norm(x: Tensor, y: Tensor) -> Tensor:
    """`min |w|_inf` with `X w = y` as a linear program: finds sign vectors from about d / 2 rows. Not batched."""
    from scipy import optimize

    d, out = x.shape[-1], torch.zeros(x.shape[:2], dtype=torch.float64)
    cost = np.append(np.zeros(d), 1.0)
    eye, ones = np.eye(d), np.ones((d, 1))
    inequality, bounds = np.block([[eye, -ones], [-eye, -ones]]), [(None, None)] * d + [(0, None)]
    for b, (rows, targets) in enumerate(zip(x.double().numpy(), y.double().numpy(), strict=True)):
        for t in range(1, x.shape[1]):
            equality = np.hstack([rows[:t], np.zeros((t, 1))])
            solution = optimize.linprog(cost, inequality, np.zeros(2 * d), equality, targets[:t], bounds)
            if solution.success:
                out[b, t] = float(solution.x[:d] @ rows[t])
    return out


def nuclear(x: Tensor, y: Tensor, steps: int = 500, rate: float = 1.0) -> Tensor:
    """`min |W|_*` with `<X_i, W> = y_i`, W square of `d` entries, by alternating directions; every prefix at once.

    W is projected on the constraints (by the pseudo-inverse), Z has its singular values shrunk, U accumulates their
    difference.
    """
    side = round(x.shape[-1] ** 0.5)
    rows = x.double()
    batch, length, d = rows.shape
    causal = torch.ones(length, length, dtype=torch.float64).tril(-1)
    prefix = rows[:, None] * causal[None, :, :, None]  # (B, T, T, d): rows before t, the others zero
    target = (y.double()[:, None] * causal)[..., None]
    inverse = torch.linalg.pinv(prefix, rtol=1e-10)
    z = u = torch.zeros(batch, length, d, dtype=torch.float64)
    for _ in range(steps):
        v = (z - u)[..., None]
        w = (v - inverse @ (prefix @ v - target))[..., 0]
        left, values, right = torch.linalg.svd((w + u).unflatten(-1, (side, side)), full_matrices=False)
        z = (left * (values - rate).clamp(min=0)[..., None, :] @ right).flatten(-2)
        u = u + w - z
    return (w * rows).sum(-1)


def neighbours(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """The mean target of the k nearest rows before; 0 if there are none."""
    length = x.shape[1]
    distance = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    later = torch.ones(length, length, dtype=torch.bool).triu()
    near = distance.masked_fill(later, torch.inf).topk(min(k, length), largest=False)
    valid = near.values.isfinite()
    values = y.double()[:, None].expand(-1, length, -1).gather(2, near.indices)
    return (values * valid).sum(-1) / valid.sum(-1).clamp(min=1)


def average(x: Tensor, y: Tensor) -> Tensor:
    """`w = mean of y_i x_i`, Garg's averaging estimator."""
    _, product, _ = prefixes(x, y)
    n = torch.arange(x.shape[1], dtype=torch.float64).clamp(min=1)[:, None]
    return (product / n * x.double()).sum(-1)
