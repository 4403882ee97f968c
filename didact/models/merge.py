"""Arithmetic on whole models: task vectors, adapters weighed and negated, closed-form fusion, logits subtracted.

A vector is `{parameter: tensor}` over the floating-point parameters; tied weights are there once. Sources: Ilharco et
al. 2023 (arXiv:2212.04089), Zhang et al. 2023 (arXiv:2306.14870), Hu et al. 2023 (arXiv:2308.08090), Jin et al. 2023
(arXiv:2212.09849).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from didact.models import adapters
from didact.models.model import Model, copy_of
from didact.parallel import parted
from didact.types import UserError

Vector = dict[str, Tensor]


@torch.no_grad()
def task_vector(tuned: Model, base: Model) -> Vector:
    """`tau = theta_tuned - theta_base`.

    Raises:
        UserError: the two do not have the same parameters.
    """
    ours, theirs = _weights(adapters.merged(tuned)), _weights(adapters.merged(base))
    shapes = {k: v.shape for k, v in ours.items()}, {k: v.shape for k, v in theirs.items()}
    if shapes[0] != shapes[1]:
        raise UserError("a task vector is the difference of two models of one shape; these two differ")
    return {k: v - theirs[k] for k, v in ours.items()}


@torch.no_grad()
def moved(model: Model, vector: Mapping[str, Tensor], scale: float) -> Model:
    """A copy at `theta + scale vector`; a negative scale takes away what the vector taught."""
    other = adapters.placeless(copy_of(adapters.merged(model)))
    weights = _weights(other)
    for name, change in vector.items():
        weights[name].add_(change, alpha=scale)
    return other


def random_vector(vector: Mapping[str, Tensor], seed: int = 0) -> Vector:
    """A vector of random directions, each tensor as long as the given one's: the control of task arithmetic."""
    made = torch.Generator().manual_seed(seed)
    out = {}
    for name, like in vector.items():
        drawn = torch.randn(like.shape, generator=made, dtype=like.dtype).to(like.device)
        out[name] = drawn * (like.norm() / drawn.norm().clamp(min=torch.finfo(like.dtype).tiny))
    return out


def deficiency(bad: Mapping[str, Tensor], good: Mapping[str, Tensor]) -> Vector:
    """Ext-Sub: of what an anti-expert learnt, the part an expert did not, row by row of every tensor.

        u = g/|g| + b/|b|,   Ext(b) = b - (b.u)/(u.u) u

    orthogonal to the shared direction u; 0 where both learnt the same, b itself where they learnt opposites.
    """
    out = {}
    for name, b in bad.items():
        rows, other = (x.reshape(x.shape[0], -1) if x.dim() > 1 else x.reshape(1, -1) for x in (b, good[name]))
        tiny = torch.finfo(b.dtype).tiny
        unit = [x / x.norm(dim=1, keepdim=True).clamp(min=tiny) for x in (rows, other)]
        u = unit[0] + unit[1]
        square = u.square().sum(1, keepdim=True)
        share = (rows * u).sum(1, keepdim=True) / square.clamp(min=tiny)
        # Opposite rows have no shared direction: what is left of u is rounding.
        share = torch.where(square > torch.finfo(b.dtype).eps, share, torch.zeros_like(share))
        out[name] = (rows - share * u).reshape(b.shape)
    return out


def regmean(weights: Sequence[Tensor], grams: Sequence[Tensor], ridge: float = 0.0) -> Tensor:
    """One linear map for several inputs: `W = (sum_i G_i)^-1 sum_i G_i W_i`, `W_i (d, o)`, `G_i = X_i' X_i (d, d)`.

    It has the least squared distance to every `X_i W_i`. `ridge` is added to the diagonal, as a share of its mean.
    """
    total = torch.stack(list(grams)).sum(0)
    total = total + ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype, device=total.device)
    return torch.linalg.solve(total, torch.stack([g @ w for g, w in zip(grams, weights, strict=True)]).sum(0))


def ia3(model: Model) -> Model:
    """(IA)^3 vectors on keys, values and the feed-forward layer, all ones; `model`'s module is wrapped in place (an
    adapter's merged weights are).

    Raises:
        UserError: peft does not know where they go in this architecture.
    """
    import peft

    model = adapters.merged(model)
    task = peft.TaskType.SEQ_2_SEQ_LM if model.kind == "seq2seq" else peft.TaskType.CAUSAL_LM
    try:
        with parted.hidden(model.module):
            module: Any = peft.get_peft_model(model.module, peft.IA3Config(task_type=task))
    except ValueError as error:
        raise UserError(f"(IA)^3 cannot be put on this model: {error}") from None
    return Model(module, model.processor, model.kind, model.base)


@torch.no_grad()
def weighed(adapted: Model, weight: float) -> Model:
    """A copy whose adapter counts `weight` times; -1 negates it.

    LoRA's product B A is scaled in ONE factor (negating both changes nothing), (IA)^3's distance from 1:
    `l -> 1 + weight (l - 1)`.

    Raises:
        UserError: there is no LoRA or (IA)^3 adapter.
    """
    other = copy_of(adapted)
    found = 0
    for name, p in other.module.named_parameters():
        if "lora_B." in name or "lora_embedding_B." in name:
            p.mul_(weight)
            found += 1
        elif "ia3_l." in name:
            p.copy_(1 + weight * (p - 1))
            found += 1
    if not found:
        raise UserError("no LoRA or (IA)^3 adapter on this model to weigh")
    return other


def _weights(model: Model) -> dict[str, Tensor]:
    """Floating-point parameters by name, tied ones once."""
    return {k: p for k, p in model.module.named_parameters() if p.is_floating_point()}
