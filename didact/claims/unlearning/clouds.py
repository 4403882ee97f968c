"""Unlearning one of two clouds (`worlds.logistic`): the losses of the NPO paper on a logistic model.

Plain loops with full-batch gradients: `fit` would spend most of 20,000 steps of 0.1 ms on its own bookkeeping.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from didact.objectives import preference, tokens
from didact.worlds import logistic

EVERY = 25  # steps between two records of the weights


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss: logits of class 0 on the forget rows `(200,)` and the retain rows `(1000,)`, the start model's
    in `ref`, and log-probs of the drawn classes, computed on first use."""

    world: logistic.Clouds
    forget: Tensor
    retain: Tensor
    ref: Any = None

    @functools.cached_property
    def logp(self) -> Tensor:
        """Log-probs of the forget rows' classes."""
        return logp(self.forget, self.world.forget.y)

    @functools.cached_property
    def idk(self) -> Tensor:
        """Log-probs of the forget rows' refusals."""
        return logp(self.forget, self.world.idk)

    @functools.cached_property
    def logits(self) -> Tensor:
        """Logits of both classes on the retain rows, `(1000, 2)`."""
        return F.pad(self.retain[:, None], (0, 1))


Loss = Callable[[LossInputs], Tensor]


def ga(s: LossInputs) -> Tensor:
    """Gradient ascent: mean log-prob of the forget rows' classes."""
    return s.logp.mean()


def idk(s: LossInputs) -> Tensor:
    """Cross-entropy to the refusal class."""
    return -s.idk.mean()


def dpo(beta: float) -> Loss:
    """DPO: refusal chosen, answer rejected, on the paper's scale 2/beta."""
    return lambda s: 2 / beta * preference.dpo(s.idk, s.logp, s.ref.idk, s.ref.logp, beta).mean()


def npo(beta: float) -> Loss:
    """Negative preference optimization."""
    return lambda s: preference.npo(s.logp, s.ref.logp, beta).mean()


def rt(s: LossInputs) -> Tensor:
    """Cross-entropy on the retain rows."""
    return -logp(s.retain, s.world.retain.y).mean()


def kl(s: LossInputs) -> Tensor:
    """KL(ref || current) on the retain rows."""
    return tokens.kl_from(s.logits, s.world.retain.y, ref_logits=s.ref.logits).mean()


@dataclass(frozen=True)
class Arm:
    """One way to unlearn: learning rate, loss on the forget rows, loss on the retain rows."""

    lr: float
    forget: Loss
    retain: Loss | None = None


def descend(cloud: logistic.Cloud, steps: int, lr: float = 0.05) -> Tensor:
    """Minimize the cross-entropy by gradient descent from 0, with gradient `phi' (sigmoid(phi theta) - [y = 0]) / n`;
    return theta `(N,)`."""
    transposed, target = cloud.phi.T.contiguous(), (cloud.y == 0).to(cloud.phi.dtype)
    theta = cloud.phi.new_zeros(cloud.phi.shape[1])
    for _ in range(steps):
        theta = theta - lr / len(target) * (transposed @ (torch.sigmoid(cloud.phi @ theta) - target))
    return theta


def unlearn(world: logistic.Clouds, start: Tensor, arm: Arm, steps: int) -> tuple[Tensor, list[float]]:
    """Minimize an arm's loss by gradient descent from `start (N,)`.

    Returns the weights at every 25th step and at the end, `(records, N)`, and NPO's mean W at the same steps,
    measured on the loss itself: `sum_i dL/dlogp_i` (1 for gradient ascent).
    """
    forget_phi, retain_phi = world.forget.phi, world.retain.phi
    ref = LossInputs(world, forget_phi @ start, retain_phi @ start)
    theta = start.clone().requires_grad_()
    path, weights = [], []
    for step in range(steps + 1):
        current = LossInputs(world, forget_phi @ theta, retain_phi @ theta if arm.retain else ref.retain, ref)
        loss = arm.forget(current)
        if step % EVERY == 0 or step == steps:
            path.append(theta.detach().clone())
            (by_row,) = torch.autograd.grad(loss, current.logp, retain_graph=True, allow_unused=True)
            weights.append(math.nan if by_row is None else float(by_row.sum()))
        (grad,) = torch.autograd.grad(loss + arm.retain(current) if arm.retain else loss, theta)
        theta = (theta.detach() - arm.lr * grad).requires_grad_()
    return torch.stack(path), weights


def divergence(seed: int, loss: Callable[[Tensor, Tensor], Tensor], steps: int, lr: float = 1.0) -> dict[str, float]:
    """Measure how fast unlearning without a retain loss diverges on almost orthonormal inputs; `loss(logp, ref_logp)`.

    Returns the displacement `D(t) = ||X (theta_t - theta_0)||` at the end, and R^2 of its linear fits in t and in
    log t, both over steps/100 <= t <= steps.
    """
    x, y, start = logistic.near_orthogonal(seed)
    theta = start.clone().requires_grad_()
    times, distances = [], []
    ref = logp(x @ start, y)
    for step in range(1, steps + 1):
        (grad,) = torch.autograd.grad(loss(logp(x @ theta, y), ref), theta)
        theta = (theta.detach() - lr * grad).requires_grad_()
        if step % (steps // 100) == 0:
            times.append(float(step))
            distances.append(float((x @ (theta.detach() - start)).norm()))
    t, d = torch.tensor(times, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    return {"displacement": distances[-1], "r2_linear": _r2(t, d), "r2_log": _r2(t.log(), d)}


def logp(logit: Tensor, y: Tensor) -> Tensor:
    """Return log p(y) where class 0 has this logit and class 1 has logit 0."""
    return F.logsigmoid(torch.where(y == 0, logit, -logit))


def distance(gold: Tensor, theta: Tensor, cloud: logistic.Cloud) -> float:
    """Return the mean KL(gold || theta) over a cloud, in nats."""
    p, q = cloud.phi @ gold, cloud.phi @ theta
    zero = (F.logsigmoid(p) - F.logsigmoid(q)) * torch.sigmoid(p)
    return float((zero + (F.logsigmoid(-p) - F.logsigmoid(-q)) * torch.sigmoid(-p)).mean())


def measures(world: logistic.Clouds, gold: Tensor, path: Tensor, forgotten: float) -> dict[str, float]:
    """Return KL distances along a path `(records, N)` from the start model. `retain_crossing` is the retain distance at
    the first record whose forget distance is below the share `forgotten` of the initial one, NaN if there is none;
    `forget_left` is the smallest such share."""
    clouds = (world.test_forget, world.test_retain)
    forget, retain = ([distance(gold, theta, cloud) for theta in path] for cloud in clouds)
    crossings = [r for f, r in zip(forget, retain, strict=True) if f < forgotten * forget[0]]
    return {
        "forget_end": forget[-1],
        "retain_end": retain[-1],
        "forget_min": min(forget),
        "forget_left": min(forget) / forget[0],
        "retain_crossing": crossings[0] if crossings else math.nan,
        "sum_min": min(f + r for f, r in zip(forget, retain, strict=True)),
    }


def _r2(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1] ** 2)
