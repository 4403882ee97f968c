"""Least-squares learners with their step sizes and strengths: gradient descent, GD++, ridge, pseudo-inverse.

Source: von Oswald et al. 2023, arXiv:2212.07677, sections 3-4 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.evaluate.learners import Learner, losses, of_module
from didact.learn import episodes
from didact.learn import fit as loop
from didact.types import Fit

GD_PLUS_PLUS = Fit(lr=0.02, steps=300, rows=1024, schedule="cosine", betas=(0.9, 0.98))


def zero() -> Learner:
    """The learner that always answers 0."""
    return lambda x, y, query: torch.zeros_like(y[:, 0])


def gd(eta: float | Sequence[float], steps: int = 1, start: Tensor | None = None) -> Learner:
    """k explicit steps of gradient descent on `L(W) = 1/(2N) sum_i ||W x_i - y_i||^2`.

        W <- W - (eta/N) sum_i (W x_i - y_i) x_i^T

    Args:
        eta: step size, one for all steps or one per step. It is divided by N here.
        steps: k; ignored with one eta per step.
        start: W0 `(o, d)`, zero by default.
    """
    etas = [eta] * steps if isinstance(eta, int | float) else list(eta)

    def predict(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        first = y.new_zeros(y.shape[-1], x.shape[-1]) if start is None else start.to(x)
        w = first.expand(len(x), -1, -1)
        for step in etas:
            residual = x @ w.transpose(1, 2) - y
            w = w - step / x.shape[1] * residual.transpose(1, 2) @ x
        return (w @ query[..., None])[..., 0]

    return predict


class GDPlusPlus(nn.Module):
    """Gradient descent that also improves the conditioning of its inputs at every step.

        r_j <- r_j - (eta_k/N) sum_i r_i (x_i . x_j)        (the query's r ends as minus the answer)
        x_j <- x_j - gamma_k sum_i x_i (x_i . x_j)

    with `r_i = y_i` at first and both lines reading the old x. With gamma 0 this is `gd`.

    Args:
        eta: step sizes, one per step, or one for all.
        gamma: input steps (of the SUM over rows), as many as `eta`.
        steps: k; as many as `eta` by default.
        unit: units of the two while they are trained, so that one learning rate fits all data.
    """

    def __init__(
        self,
        eta: Sequence[float],
        gamma: Sequence[float],
        steps: int | None = None,
        unit: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.unit, self.steps = unit, steps or len(eta)
        self.u = nn.Parameter(torch.tensor([e / unit[0] for e in eta]))
        self.v = nn.Parameter(torch.tensor([g / unit[1] for g in gamma]))

    @property
    def eta(self) -> Tensor:
        """Step sizes."""
        return self.u * self.unit[0]

    @property
    def gamma(self) -> Tensor:
        """Input steps."""
        return self.v * self.unit[1]

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Answer the queries."""
        answer = torch.zeros_like(y[:, 0])
        rates, gammas = self.eta.to(x) / x.shape[1], self.gamma.to(x)
        for step in range(self.steps):
            rate, gamma = rates[step % len(rates)], gammas[step % len(gammas)]
            near, gram = (x @ query[..., None]).transpose(1, 2), x @ x.transpose(1, 2)
            answer = answer + rate * (near @ y)[:, 0]
            y = y - rate * gram @ y
            query = query - gamma * (near @ x)[:, 0]
            x = x - gamma * gram @ x
        return answer


def gd_plus_plus(eta: Sequence[float], gamma: Sequence[float], steps: int | None = None) -> Learner:
    """`GDPlusPlus` with known step sizes."""
    return of_module(GDPlusPlus(eta, gamma, steps).requires_grad_(False))


def ridge(strength: float) -> Learner:
    """`W = Y^T X (X^T X + strength I)^-1`."""

    def predict(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        gram = x.transpose(1, 2) @ x + strength * torch.eye(x.shape[-1]).to(x)
        w = torch.linalg.solve(gram, x.transpose(1, 2) @ y)
        return (query[:, None] @ w)[:, 0]

    return predict


def ols() -> Learner:
    """Least squares of smallest norm, through the pseudo-inverse."""

    def predict(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        # In double: with about as many rows as inputs the pseudo-inverse is ill-conditioned.
        w = torch.linalg.pinv(x.double()) @ y.double()
        return (query[:, None] @ w.to(query))[:, 0]

    return predict


def optimal_eta(rows: int, dim: int, variance: float, fourth: float) -> float:
    """Best step size of one step from 0 for iid coordinates of mean zero, noise-free, `w ~ N(0, I)`.

        eta* = N s2 / (m4 + (N + d - 2) s2^2)

    With s2, m4 the variance and fourth moment; the loss there is `1/2 s2 d (1 - eta* s2)`.
    """
    return rows * variance / (fourth + (rows + dim - 2) * variance**2)


def best_eta(tasks: Tensors, steps: int = 1) -> float:
    """The step size with the smallest mean loss over tasks: the best of a grid, refined by Brent's method."""
    x = tasks["x"][:1000]  # enough for the scale of the grid
    top = torch.linalg.eigvalsh(x.transpose(1, 2) @ x / x.shape[1])[:, -1].mean().item()
    limit = 4.0 / max(top, 1e-30)

    def loss(eta: float) -> float:
        value = losses(gd(eta, steps), tasks).double().mean().item()
        return value if math.isfinite(value) else math.inf

    grid = np.linspace(0.0, limit, 81)
    best = int(np.argmin([loss(float(eta)) for eta in grid]))
    bounds = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 80)]))
    return float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": limit * 1e-6}).x)


def best_ridge(tasks: Tensors) -> float:
    """The ridge strength with the smallest mean loss over tasks, of a grid over eight decades of the inputs' scale."""
    scale = max(tasks["x"].square().sum(1).mean().item(), 1e-12)  # X may be all zeros
    grid = [float(scale * 10.0**power) for power in np.arange(-6.0, 2.25, 0.25)]
    return min(grid, key=lambda strength: losses(ridge(strength), tasks).double().mean().item())


def train_gd_plus_plus(sampler: episodes.Sampler, steps: int, shared: bool, fit: Fit) -> GDPlusPlus:
    """GD++ with eta and gamma trained by Adam on the query loss; one pair for all steps if `shared`.

    Starts from the best GD of as many steps and the official code's `gamma = eta / N^2`.
    """
    tasks = sampler((fit.seed, 0, 1), fit.rows)
    rows = tasks["x"].shape[1]
    eta = best_eta(tasks, steps)
    count = 1 if shared else steps
    module = GDPlusPlus([eta] * count, [eta / rows**2] * count, steps, unit=(eta, eta / rows))
    loop.fit(
        module,
        episodes.batches(sampler, fit.seed, fit.rows),
        episodes.task_loss,
        fit,
        steps=fit.total_steps(0),
        name="gd++",
        quiet=True,
    )
    return module.requires_grad_(False)


@episodes.one_thread()
def tuned_references(
    sampler: episodes.Sampler, tasks: Tensors, steps: int = 1, shared: bool = True, seed: int = 0
) -> tuple[dict[str, Learner], dict[str, Any]]:
    """The reference algorithms, tuned on `tasks`: `gd, ridge, ols, zero, gd++`; and their hyperparameters.

    One step of GD++ is one of GD (the inputs that it moves are not used), so it is included from two steps on.

    Args:
        sampler: tasks to train GD++ on.
        tasks: tasks to choose the step size and the ridge strength on.
        steps: k of GD and GD++.
        shared: GD++ has one eta and gamma for all steps.
        seed: of GD++'s training.
    """
    eta, strength = best_eta(tasks, steps), best_ridge(tasks)
    learners = {"gd": gd(eta, steps), "ridge": ridge(strength), "ols": ols(), "zero": zero()}
    tuned: dict[str, Any] = {"steps": steps, "eta": eta, "ridge": strength}
    if steps > 1:
        plus = train_gd_plus_plus(sampler, steps, shared, GD_PLUS_PLUS.replace(seed=seed))
        learners["gd++"] = of_module(plus)
        tuned["gd++"] = {"eta": plus.eta.tolist(), "gamma": plus.gamma.tolist()}
    return learners, tuned
