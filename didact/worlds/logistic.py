"""Two Gaussian clouds with contradicting labels, seen through frozen random features (the NPO paper's section 4).

Only the weights `theta (N,)` of a logistic model on the features are trained, so the reference model that never saw
the forget cloud is as cheap to train as any other, and the distance to it can be measured exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cloud:
    """One sample: features `phi (n, N)` float64, drawn classes `y (n,)` in {0, 1}, true `p0 (n,)` = P(y = 0)."""

    phi: Tensor
    y: Tensor
    p0: Tensor


@dataclass(frozen=True)
class Clouds:
    """Training samples, the refusal class of each forget row `idk (n,)`, and test samples."""

    retain: Cloud
    forget: Cloud
    idk: Tensor
    test_retain: Cloud
    test_forget: Cloud


def clouds(
    seed: int,
    alpha: float = 1.0,
    retain: int = 1000,
    forget: int = 200,
    test: int = 1000,
    dim: int = 16,
    width: int = 128,
) -> Clouds:
    """Draw a world, a pure function of the seed.

        W (width, dim) ~ N(0, 1/dim), frozen;  phi(x) = ReLU(W x);  model: logit of class 0 = phi(x)' theta
        retain: x ~ N(-alpha 1, I), logits of the classes (s, 0) with s = (x - mu)' 1/sqrt(dim) + 1
        forget: x ~ N(+alpha 1, I), the same with the classes swapped
        refusal class ~ Bernoulli(1/2)

    Args:
        seed: of every draw.
        alpha: half the distance between the two means, per coordinate; at 0 the clouds overlap fully.
        retain, forget, test: rows of each sample (`test` for each of the two test samples).
        dim: dimension of x.
        width: number of features.

    Source: arXiv 2404.05868, section 4; sizes of the official code.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(width, dim, generator=draw, dtype=torch.float64) / dim**0.5

    def cloud(n: int, mean: float, flip: bool) -> Cloud:
        z = torch.randn(n, dim, generator=draw, dtype=torch.float64)
        p = torch.sigmoid(z.sum(-1) / dim**0.5 + 1)
        p0 = 1 - p if flip else p
        y = (torch.rand(n, generator=draw, dtype=torch.float64) >= p0).long()
        return Cloud(torch.relu((z + mean) @ weights.T), y, p0)

    retain_cloud, forget_cloud = cloud(retain, -alpha, False), cloud(forget, alpha, True)
    idk = torch.randint(2, (forget,), generator=draw)
    return Clouds(retain_cloud, forget_cloud, idk, cloud(test, -alpha, False), cloud(test, alpha, True))


def near_orthogonal(seed: int, rows: int = 8, dim: int = 32, noise: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """Nearly orthonormal inputs with classes and initial weights: `x (rows, dim)`, `y (rows,)`, `theta (dim,)`.

    `x` has orthonormal rows plus N(0, noise^2 / dim), `y` is a fair coin, `theta ~ N(0, 1/dim)`: the setting
    in which the speed of divergence is known (arXiv 2404.05868, theorem 2).
    """
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, rows, generator=draw, dtype=torch.float64)).Q.T
    x = basis + noise / dim**0.5 * torch.randn(rows, dim, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (rows,), generator=draw)
    return x, y, torch.randn(dim, generator=draw, dtype=torch.float64) / dim**0.5
