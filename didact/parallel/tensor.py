"""Layers of a transformers model split over processes, by the plan that its configuration brings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

STYLES: dict[str, Callable[[], ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
PARTIAL = "replicated_with_grad_allreduce"  # whole in every process, which sees its own heads only
SAME = 1e-2  # of a gradient's norm: kernels of an accelerator add up in no fixed order
HEADS = {"num_attention_heads": "attention heads", "num_key_value_heads": "heads of keys and values"}


def inner(module: Any) -> Any:
    """The transformers model that adapters are on."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def refusal(config: Any) -> str | None:
    """Why layers of such a model cannot be split; None where they can."""
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        return f"transformers has no tensor-parallel plan of {config.model_type}"
    if unknown := sorted(set(plan.values()) - STYLES.keys() - {PARTIAL}):
        return f"the tensor-parallel plan of {config.model_type} asks for {', '.join(unknown)}"
    return None


def unfit(module: Any, parts: int) -> str | None:
    """Why this very model, or adapters on it, cannot be split into so many parts; None where it can."""
    config = inner(module).config
    if reason := refusal(config):
        return reason
    for name, label in HEADS.items():
        if (count := getattr(config, name, None) or parts) % parts:
            return f"{count} {label} do not divide into {parts} parts"
    planned = list(_planned(module))
    if len(planned) != len(config.base_model_tp_plan) * config.num_hidden_layers:
        return f"its layers are not those that the tensor-parallel plan of {config.model_type} knows"
    for name, style, part in planned:
        layer = getattr(part, "base_layer", part)
        if style == PARTIAL:
            continue
        if type(layer) is not nn.Linear or (layer is not part and not _plain_lora(part)):
            return f"{name} is no plain linear layer or LoRA on one"
        if (width := layer.out_features if style == "colwise" else layer.in_features) % parts:
            return f"the width {width} of {name} does not divide into {parts} parts"
    return None


def split_layers(module: Any, mesh: DeviceMesh) -> list[nn.Module]:
    """Split the layers of a causal model in place by its plan, and LoRA on them as what it is on.

    Returns:
        Modules whose weights stay whole and whose gradients are terms of a sum over `mesh`.
    """
    partial = []
    for _, style, part in list(_planned(module)):
        if style == PARTIAL:
            partial.append(part)
            continue
        parallelize_module(getattr(part, "base_layer", part), mesh, STYLES[style]())
        for adapter in getattr(part, "lora_B" if style == "colwise" else "lora_A", {}).values():
            parallelize_module(adapter, mesh, STYLES[style]())
    return partial


def split(module: Any, mesh: DeviceMesh) -> list[nn.Module]:
    """Split a causal model in place: its layers by its plan, embedding and head by the entries of the vocabulary.

    Logits stay split over the vocabulary.
    """
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    tied = isinstance(table, nn.Embedding) and isinstance(head, nn.Linear) and head.weight is table.weight
    partial = split_layers(module, mesh)
    if isinstance(table, nn.Embedding):
        parallelize_module(table, mesh, RowwiseParallel(input_layouts=Replicate()))
    if isinstance(head, nn.Linear):
        parallelize_module(head, mesh, ColwiseParallel())
    if tied:
        head.weight = table.weight
    return partial


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


def norm(gradients: Iterable[Tensor], everyone: int, device: torch.device) -> float:
    """Of gradients together, however each lies over the processes; `everyone` are those of a stage. All call."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for grad in gradients:
        total += local(grad).double().square().sum() / holders(grad, everyone)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total.sqrt())


def gradient(p: nn.Parameter) -> Tensor:
    """Of a weight; zeros where it has none yet."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def settle(p: nn.Parameter) -> None:
    """Lay a gradient out as its weight is: autograd may leave it whole, or as terms of a sum."""
    if isinstance(p, DTensor) and isinstance(p.grad, DTensor) and p.grad.placements != p.placements:
        p.grad = p.grad.redistribute(placements=p.placements)


def complete(partial: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Sum over `mesh` the gradients of which every process has a term: once, after the last backward pass."""
    for part in partial:
        for p in part.parameters():
            if p.grad is not None:
                dist.all_reduce(local(p.grad), group=mesh.get_group())


def unequal(named: Mapping[str, Tensor], mesh: DeviceMesh) -> str | None:
    """The first of some weights that all processes of `mesh` have whose gradient is another one in one of them."""
    grads = {n: local(p.grad) for n, p in named.items() if p.grad is not None}
    if not grads:
        return None
    sizes = torch.stack([g.double().square().sum().sqrt() for g in grads.values()])
    extremes = torch.stack([sizes, -sizes])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=mesh.get_group())
    return next((n for n, top, low in zip(grads, extremes[0], -extremes[1], strict=True) if top - low > SAME * top), None)


def _planned(module: Any) -> Iterator[tuple[str, str, Any]]:
    """What the plan names: `(name, style, module)`."""
    model = inner(module)
    for pattern, style in model.config.base_model_tp_plan.items():
        regex = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name, part in model.base_model.named_modules():
            if regex.fullmatch(name):
                yield name, style, part


def _plain_lora(part: Any) -> bool:
    """Whether an adapter on a layer is a product of two linear layers and nothing more."""
    return bool(getattr(part, "lora_A", None)) and not part.lora_variant
