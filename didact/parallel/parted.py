"""A module whose layers are sharded over the processes of a mesh: each layer is gathered only while it runs.

Every process keeps its rows of a layer's weights (DTensors, laid out as in FSDP2) and all weights outside of layers.
All processes must run the same layers in the same order, with any inputs; a process out of step is an error, since
it would silently get another layer's weights. Gradients are left to FSDP2 (`sharding`), which takes over the parts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from didact.errors import UserError
from didact.parallel import shards

_LAYER_NUMBERS = itertools.count(1)  # the same in every process
Spot = tuple[nn.Module, str, Any]
Rows = Callable[[str, slice], Tensor]
"""Reads rows of a weight, given by its name in the whole module."""


class GatherHooks:
    """The hooks of a layer that gather its weights before it runs, and shard them afterwards, even if it fails."""

    def __init__(self) -> None:
        self.number, self.parts = next(_LAYER_NUMBERS), list[Spot]()

    def __deepcopy__(self, memo: Any) -> GatherHooks:
        return GatherHooks()

    def gather(self, layer: nn.Module, _: Any = None) -> None:
        """Gather the layer's weights.

        Raises:
            UserError: they need gradients, which would be lost, or another process runs another layer.
        """
        if self.parts or not (spots := _spots(layer)):
            return
        if torch.is_grad_enabled() and any(p.requires_grad for _, _, p in spots):
            raise UserError(
                "gradients were requested for weights that are sharded over processes, but not for training: use ddp"
            )
        weights = _all_gather([p.detach() for _, _, p in spots], self.number)
        self.parts = spots
        for (part, name, _), value in zip(spots, weights, strict=True):
            part._parameters[name] = nn.Parameter(value, requires_grad=False)

    def part(self, *_: Any) -> None:
        """Replace the layer's weights by this process's parts."""
        for part, name, p in self.parts:
            part._parameters[name] = p
        self.parts = []


def fill(module: nn.Module, layers: Sequence[nn.Module], over: DeviceMesh, rows: Rows, device: torch.device) -> None:
    """Fill a module on the meta device: layers sharded over a mesh, other weights whole; tied weights stay tied.

    Args:
        module: on the meta device.
        layers: submodules to gather only while they run.
        over: its last axis are the processes that a weight is sharded over.
        rows: reads rows of any weight; of weights outside of layers all at once.
        device: of this process.
    """
    inside = {id(part) for layer in layers for part in layer.modules()}
    outer = {id(p) for part in module.modules() if id(part) not in inside for p in part._parameters.values()}
    built: dict[int, nn.Parameter] = {}
    for prefix, part in module.named_modules():
        for name, p in [(n, p) for n, p in part._parameters.items() if p is not None]:
            full = f"{prefix}.{name}" if prefix else name
            if id(p) not in built:
                split = id(part) in inside and id(p) not in outer and p.dim() > 0
                value = (
                    _local_part(full, p, over, rows, device) if split else rows(full, slice(None)).to(device, p.dtype)
                )
                built[id(p)] = nn.Parameter(value, p.requires_grad)
            part._parameters[name] = built[id(p)]
    watched(layers)


def _local_part(name: str, p: Tensor, over: DeviceMesh, rows: Rows, device: torch.device) -> Tensor:
    """Read this process's part of a weight."""
    placements = (*[Replicate()] * (over.ndim - 1), Shard(0))
    shape, offset = compute_local_shape_and_global_offset(p.shape, over, placements)
    local = torch.empty(shape, dtype=p.dtype, device=device)
    if local.numel():
        local.copy_(rows(name, slice(offset[0], offset[0] + shape[0])))
    return DTensor.from_local(local, over, placements, run_check=False, shape=p.shape, stride=p.stride())


def watched(layers: Sequence[nn.Module]) -> None:
    """Gather layers whenever they run."""
    for layer in layers:
        hooks = GatherHooks()
        layer.register_forward_pre_hook(hooks.gather)
        layer.register_forward_hook(hooks.part, always_call=True)


def take_parts(module: nn.Module) -> dict[str, Tensor]:
    """Take the parts out of a module, by name, and put weights on the meta device in their place."""
    held, bare = dict[str, Tensor](), dict[int, nn.Parameter]()
    for prefix, part in module.named_modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(_owner(hook), GatherHooks)]:
                del hooks[key]
                part._forward_hooks_always_called.pop(key, None)
        for name, p in list(part._parameters.items()):
            if isinstance(p, DTensor):
                held[f"{prefix}.{name}" if prefix else name] = p
                empty = torch.empty(p.shape, dtype=p.dtype, device="meta")
                part._parameters[name] = bare.setdefault(id(p), nn.Parameter(empty, p.requires_grad))
    return held


def put_parts(module: nn.Module, held: Mapping[str, Any], over: DeviceMesh) -> None:
    """Put parts back into a module that FSDP2 has sharded on the meta device; trained ones are copied.

    Raises:
        UserError: they are sharded over other processes than FSDP2 uses.
    """
    if any(p.device_mesh != over for p in held.values()):
        raise UserError(
            "the model was loaded sharded in another way than it is trained in: load it with the same `parallel`"
        )
    for prefix, part in module.named_modules() if held else ():
        for name, p in list(part._parameters.items()):
            if (local := held.get(f"{prefix}.{name}" if prefix else name)) is not None and p is not None:
                local = local.detach().clone() if p.requires_grad else local.detach()
                part._parameters[name] = nn.Parameter(local, p.requires_grad)


@contextlib.contextmanager
def hidden(module: nn.Module) -> Iterator[None]:
    """Replace parts inside by zeros of the whole weight's shape, without memory, so that layers can be wrapped.

    Otherwise peft would take parts for tensor-parallel ones, and build adapters of their size.
    """
    spots = _spots(module)
    for part, name, p in spots:
        zeros = torch.zeros((), dtype=p.dtype, device=p.to_local().device).expand(p.shape)
        part._parameters[name] = nn.Parameter(zeros, p.requires_grad)
    try:
        yield
    finally:
        for part, name, p in spots:
            replaced = part._parameters[name]
            part._parameters[name] = p.requires_grad_(replaced is not None and replaced.requires_grad)


@contextlib.contextmanager
def opened(layer: nn.Module) -> Iterator[None]:
    """Gather a layer inside; changes to its weights are kept: all processes must call it."""
    hooks = next(owner for hook in layer._forward_pre_hooks.values() if isinstance(owner := _owner(hook), GatherHooks))
    with torch.no_grad():
        hooks.gather(layer)
        try:
            yield
            for part, name, p in hooks.parts:
                shards.place(p, getattr(part, name))
        finally:
            hooks.part()


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Return the layers that are sharded."""
    return [
        part
        for part in module.modules()
        if any(isinstance(_owner(h), GatherHooks) for h in part._forward_hooks.values())
    ]


def _owner(hook: Any) -> Any:
    return getattr(hook, "__self__", None)


def _spots(layer: nn.Module) -> list[Spot]:
    return [
        (part, name, p) for part in layer.modules() for name, p in part._parameters.items() if isinstance(p, DTensor)
    ]


def _all_gather(parts: Sequence[Any], number: int) -> list[Tensor]:
    """All-gather the weights of one layer in one exchange, with the layer's number to check."""
    over = parts[0].device_mesh
    count = over.size(over.ndim - 1)
    rows = [-(-p.shape[0] // count) for p in parts]
    pieces = [torch.tensor([number], device=parts[0].to_local().device)]
    for p, most in zip(parts, rows, strict=True):
        local = p.to_local()
        pieces.append(
            torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])]) if len(local) < most else local
        )
    packed = torch.cat([piece.contiguous().view(torch.uint8).flatten() for piece in pieces])
    gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor  # its name in older torch
    gathered = collectives.wait_tensor(gather(packed, 0, over.get_group(over.ndim - 1))).view(count, -1)
    if (gathered[:, :8] != packed[:8]).any():
        raise UserError("processes are not in step: they run different layers of a model sharded over all of them")
    weights, offset = [], 8
    for p, piece in zip(parts, pieces[1:], strict=True):
        size = piece.numel() * piece.element_size()
        local = gathered[:, offset : offset + size].clone().view(p.dtype).view(-1, *p.shape[1:])
        weights.append(local[: p.shape[0]])
        offset += size
    return weights
