"""Arithmetic on whole models: task vectors, scaled and negated adapters, closed-form fusion.

A vector is `{parameter: tensor}` over the floating-point parameters, tied weights once. Sources: Ilharco et
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
    tuned_weights, base_weights = _weights(adapters.merged(tuned)), _weights(adapters.merged(base))
    shapes = {k: v.shape for k, v in tuned_weights.items()}, {k: v.shape for k, v in base_weights.items()}
    if shapes[0] != shapes[1]:
        raise UserError("a task vector needs two models with the same parameters and shapes; these differ")
    return {k: v - base_weights[k] for k, v in tuned_weights.items()}


@torch.no_grad()
def add_vector(model: Model, vector: Mapping[str, Tensor], scale: float) -> Model:
    """Return a copy at `theta + scale vector`; a negative scale removes what the vector taught."""
    copied = adapters.placeless(copy_of(adapters.merged(model)))
    weights = _weights(copied)
    for name, change in vector.items():
        weights[name].add_(change, alpha=scale)
    return copied


def random_vector(vector: Mapping[str, Tensor], seed: int = 0) -> Vector:
    """Draw a vector of random directions with the norm of each tensor: the control of task arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, like in vector.items():
        drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
        out[name] = drawn * (like.norm() / drawn.norm().clamp(min=torch.finfo(like.dtype).tiny))
    return out


def deficiency(anti_expert: Mapping[str, Tensor], expert: Mapping[str, Tensor]) -> Vector:
    """Ext-Sub: the part of an anti-expert's vector that an expert does not share, row by row of every tensor.

        u = g/|g| + b/|b|,   Ext(b) = b - (b.u)/(u.u) u

    of the anti-expert's b and the expert's g; orthogonal to the shared direction u, 0 if b = g, b itself if b = -g.
    """
    out = {}
    for name, b in anti_expert.items():
        rows, good_rows = (x.reshape(x.shape[0], -1) if x.dim() > 1 else x.reshape(1, -1) for x in (b, expert[name]))
        tiny = torch.finfo(b.dtype).tiny
        units = [x / x.norm(dim=1, keepdim=True).clamp(min=tiny) for x in (rows, good_rows)]
        u = units[0] + units[1]
        square = u.square().sum(1, keepdim=True)
        share = (rows * u).sum(1, keepdim=True) / square.clamp(min=tiny)
        # Opposite rows have no shared direction: u is only rounding error.
        share = torch.where(square > torch.finfo(b.dtype).eps, share, torch.zeros_like(share))
        out[name] = (rows - share * u).reshape(b.shape)
    return out


def regmean(weights: Sequence[Tensor], grams: Sequence[Tensor], ridge: float = 0.0) -> Tensor:
    """Fuse linear maps: `W = (sum_i G_i)^-1 sum_i G_i W_i`, `W_i (d, o)`, `G_i = X_i' X_i (d, d)`.

    It minimises `sum_i |X_i W - X_i W_i|^2`. `ridge` is added to the diagonal, as a share of its mean.
    """
    total = torch.stack(list(grams)).sum(0)
    total = total + ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype, device=total.device)
    return torch.linalg.solve(total, torch.stack([g @ w for g, w in zip(grams, weights, strict=True)]).sum(0))


def ia3(model: Model) -> Model:
    """Put (IA)^3 vectors, initially ones, on keys, values and the feed-forward layer; `model`'s module is wrapped in
    place (an adapter is merged into a copy first).

    Raises:
        UserError: peft does not support them for this architecture.
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
def scale_adapter(adapted: Model, weight: float) -> Model:
    """Return a copy whose adapter is scaled by `weight`; -1 negates it.

    LoRA's product B A is scaled in ONE factor (negating both changes nothing), (IA)^3 in its distance from 1:
    `l -> 1 + weight (l - 1)`.

    Raises:
        UserError: there is no LoRA or (IA)^3 adapter.
    """
    scaled = copy_of(adapted)
    count = 0
    for name, p in scaled.module.named_parameters():
        if "lora_B." in name or "lora_embedding_B." in name:
            p.mul_(weight)
            count += 1
        elif "ia3_l." in name:
            p.copy_(1 + weight * (p - 1))
            count += 1
    if not count:
        raise UserError("this model has no LoRA or (IA)^3 adapter to scale")
    return scaled


def _weights(model: Model) -> dict[str, Tensor]:
    """Floating-point parameters by name, tied ones once."""
    return {k: p for k, p in model.module.named_parameters() if p.is_floating_point()}
