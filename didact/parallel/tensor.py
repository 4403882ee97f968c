"""Layers of a transformers model split over processes, by the plan that its configuration brings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

STYLES: dict[str, Callable[[], ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def refusal(config: Any) -> str | None:
    """Why layers of such a model cannot be split; None where they can."""
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        return f"transformers has no tensor-parallel plan of {config.model_type}"
    if unknown := sorted(set(plan.values()) - STYLES.keys()):
        return f"the tensor-parallel plan of {config.model_type} asks for {', '.join(unknown)}"
    return None


def split(module: Any, mesh: DeviceMesh) -> None:
    """Split a causal model in place: its layers by its plan, embedding and head by the entries of the vocabulary.

    Logits stay split over the vocabulary.
    """
    body, table, head = module.base_model, module.get_input_embeddings(), module.get_output_embeddings()
    tied = isinstance(table, nn.Embedding) and isinstance(head, nn.Linear) and head.weight is table.weight
    for pattern, style in module.config.base_model_tp_plan.items():
        wanted = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        found = {name: STYLES[style]() for name, part in body.named_modules() if wanted.fullmatch(name)}
        if found:
            parallelize_module(body, mesh, found)
    if isinstance(table, nn.Embedding):
        parallelize_module(table, mesh, RowwiseParallel(input_layouts=Replicate()))
    if isinstance(head, nn.Linear):
        parallelize_module(head, mesh, ColwiseParallel())
    if tied:
        head.weight = table.weight


def logits(local: Tensor, mesh: DeviceMesh, vocab: int) -> DTensor:
    """A process's part of the logits `(N, V / tp)` as what it is a part of, `(N, V)`."""
    shape = torch.Size((local.shape[0], vocab))
    return DTensor.from_local(local, mesh, [Shard(1)], run_check=False, shape=shape, stride=(vocab, 1))


@torch.no_grad()
def local(p: Tensor) -> Tensor:
    """This process's part."""
    return p.to_local() if isinstance(p, DTensor) else p


def holders(p: Tensor, everyone: int) -> float:
    """How many of the processes of a stage have the same part of a weight."""
    if not isinstance(p, DTensor):
        return everyone
    for placed, size in zip(p.placements, p.device_mesh.shape, strict=True):
        everyone //= 1 if placed.is_replicate() else size
    return everyone


def gradient(p: nn.Parameter) -> Tensor:
    """Of a weight; zeros where it has none yet."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def settle(p: nn.Parameter) -> None:
    """Lay a gradient out as its weight is: autograd may leave it whole, or as terms of a sum."""
    if isinstance(p, DTensor) and isinstance(p.grad, DTensor) and p.grad.placements != p.placements:
        p.grad = p.grad.redistribute(placements=p.placements)
