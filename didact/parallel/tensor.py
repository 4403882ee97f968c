"""Tensor parallelism: layers of a transformers model split over processes, by the plan in its configuration."""

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
PARTIAL = "replicated_with_grad_allreduce"  # whole in every process, with gradients from its own heads only
SAME = 1e-2  # tolerance of a gradient's norm: accelerator kernels add up in no fixed order
HEADS = {"num_attention_heads": "attention heads", "num_key_value_heads": "heads of keys and values"}


def inner(module: Any) -> Any:
    """Return the transformers model inside an adapter, or the module itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def refusal(config: Any) -> str | None:
    """Return why layers of a model with this configuration cannot be split; None if they can."""
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        return f"transformers has no tensor-parallel plan for {config.model_type}"
    if unknown := sorted(set(plan.values()) - STYLES.keys() - {PARTIAL}):
        return f"the tensor-parallel plan of {config.model_type} needs unsupported styles: {', '.join(unknown)}"
    return None


def unfit(module: Any, parts: int) -> str | None:
    """Return why this model, or adapters on it, cannot be split into `parts` parts; None if it can."""
    config = inner(module).config
    if reason := refusal(config):
        return reason
    for name, label in HEADS.items():
        if (count := getattr(config, name, None) or parts) % parts:
            return f"{count} {label} do not divide into {parts} parts"
    planned = list(_planned(module))
    if len(planned) != len(config.base_model_tp_plan) * config.num_hidden_layers:
        return f"its layers do not match the tensor-parallel plan of {config.model_type}"
    for name, style, part in planned:
        layer = getattr(part, "base_layer", part)
        if style == PARTIAL:
            continue
        if type(layer) is not nn.Linear or (layer is not part and not _plain_lora(part)):
            return f"{name} is not a plain linear layer or LoRA on one"
        if (width := layer.out_features if style == "colwise" else layer.in_features) % parts:
            return f"the width {width} of {name} does not divide into {parts} parts"
    return None


def split_layers(module: Any, mesh: DeviceMesh) -> list[nn.Module]:
    """Split the layers of a causal model in place by its plan, and LoRA in the same way as the layer that it is on.

    Returns:
        Modules whose weights stay whole and whose gradients must be summed over `mesh`.
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
    """Split a causal model in place: its layers by its plan, embedding and head by vocabulary.

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
    """Wrap a process's part of the logits, `(N, V / tp)`, as the whole `(N, V)`."""
    shape = torch.Size((local.shape[0], vocab))
    return DTensor.from_local(local, mesh, [Shard(1)], run_check=False, shape=shape, stride=(vocab, 1))


@torch.no_grad()
def local(p: Tensor) -> Tensor:
    """Return this process's part."""
    return p.to_local() if isinstance(p, DTensor) else p


def holders(p: Tensor, everyone: int) -> float:
    """Return how many of the processes of a stage hold the same part of a weight."""
    if not isinstance(p, DTensor):
        return everyone
    for placed, size in zip(p.placements, p.device_mesh.shape, strict=True):
        everyone //= 1 if placed.is_replicate() else size
    return everyone


def norm(gradients: Iterable[Tensor], everyone: int, device: torch.device) -> float:
    """Return the norm of gradients together, sharded or not; `everyone` is the size of a stage. All must call it."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for grad in gradients:
        total += local(grad).double().square().sum() / holders(grad, everyone)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total.sqrt())


def gradient(p: nn.Parameter) -> Tensor:
    """Return the gradient of a weight; set to zeros if it has none."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def settle(p: nn.Parameter) -> None:
    """Redistribute a gradient like its weight: autograd may leave it replicated, or as partial sums."""
    if isinstance(p, DTensor) and isinstance(p.grad, DTensor) and p.grad.placements != p.placements:
        p.grad = p.grad.redistribute(placements=p.placements)


def complete(partial: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Sum partial gradients over `mesh`: once, after the last backward pass."""
    for part in partial:
        for p in part.parameters():
            if p.grad is not None:
                dist.all_reduce(local(p.grad), group=mesh.get_group())


def unequal(weights: Mapping[str, Tensor], mesh: DeviceMesh) -> str | None:
    """Return the first weight that all processes of `mesh` hold and whose gradient norm differs between them."""
    grads = {n: local(p.grad) for n, p in weights.items() if p.grad is not None}
    if not grads:
        return None
    sizes = torch.stack([g.double().square().sum().sqrt() for g in grads.values()])
    ends = torch.stack([sizes, -sizes])
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=mesh.get_group())
    return next((n for n, top, low in zip(grads, ends[0], -ends[1], strict=True) if top - low > SAME * top), None)


def _planned(module: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the modules in the plan: `(name, style, module)`."""
    model = inner(module)
    for pattern, style in model.config.base_model_tp_plan.items():
        regex = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name, part in model.base_model.named_modules():
            if regex.fullmatch(name):
                yield name, style, part


def _plain_lora(part: Any) -> bool:
    """Whether an adapter on a layer is a product of two linear layers and nothing more."""
    return bool(getattr(part, "lora_A", None)) and not part.lora_variant
