"""FSDP2: a module whose weights, gradients and optimizer state are sharded over a mesh while it is trained.

Layers are gathered one by one as they run (`fully_shard`); all other weights (embedding, last norm, head) are one more
group, gathered throughout the loss, so that a loss may read the head's weights directly. Gradients are SUMS over
processes: losses are already divided by the count of the whole batch.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from didact.errors import UserError
from didact.parallel import parted, shards, stages, tensor
from didact.parallel.mesh import Over


class Sharded:
    """A module that is sharded in place; `gathered` returns it as an ordinary module again.

    Args:
        module: with all its weights, of which every process keeps its part, or already in parts (`parted`); tensors
            that are also referenced elsewhere are not changed.
        over: the processes.
        layers: gathered one by one, and split if `over` has parts; the rest of the module is one group.
    """

    def __init__(self, module: nn.Module, over: Over, layers: Sequence[nn.Module]) -> None:
        self.over, self.settled = over, False
        self.frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
        self.template = _without_memory(module)
        self.held = parted.take_parts(module)
        self.module, self.root = module, _Root(module)
        tied = stages.relayed(tensor.inner(module), over.relay) if over.relay else None
        self.shared = next((n for n, p in module.named_parameters() if p is tied), None)
        self.partial = tensor.split_layers(module, over.parts) if over.parts else []
        submodules = set(module.modules())
        reshard = over.relay is None  # a pipeline keeps gathered weights between its passes
        for part in filter(submodules.__contains__, layers):
            fully_shard(part, mesh=over.layers, reshard_after_forward=reshard)
        fully_shard(self.root, mesh=over.rest)
        for part in self.root.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        root: Any = self.root
        root.set_gradient_divide_factor(float(over.alike))
        parted.put_parts(module, self.held, over.layers)
        with self.open():  # FSDP2 takes the first module to run as the root
            self.root(lambda: None)

    def __call__(self, compute: Callable[..., Any], *args: Any) -> Any:
        """Return `compute(*args)`, which may run the module and whose result may be differentiated."""
        return self.root(self.over.relay.run, compute, *args) if self.over.relay else self.root(compute, *args)

    def settle(self) -> None:
        """Complete gradients after the last backward pass of a step: all processes must call it."""
        if self.over.relay:
            self.over.relay.wait()
            parameters = dict(self.module.named_parameters())
            if self.shared and parameters[self.shared].requires_grad:
                dist.all_reduce(tensor.local(tensor.gradient(parameters[self.shared])), group=self.over.relay.ends)
        if self.over.parts is None:
            return
        tensor.complete(self.partial, self.over.parts)
        if not self.settled:  # an incomplete plan would go unnoticed
            self.settled = True
            replicated = {n: p for n, p in self.module.named_parameters() if _mesh_of(p) == self.over.layers}
            if name := tensor.unequal(replicated, self.over.parts):
                raise UserError(
                    f"parallel = {self.over.grid}: parts of a layer disagree on the gradient of "
                    f"{name}: this model's tensor-parallel plan is not complete: use fsdp2"
                )

    def norm(self, gradients: Mapping[str, Tensor]) -> float:
        """Return the norm of all gradients together, also of other stages: all processes must call it."""
        relay = self.over.relay
        unique = [g for n, g in gradients.items() if not (relay and relay.last and n == self.shared)]
        return tensor.norm(unique, self.over.stage, next(iter(gradients.values())).device)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Gather the module inside, to be used without gradients like an ordinary one: by all processes alike."""
        root: Any = self.root
        root.unshard()
        try:
            yield
        finally:
            root.reshard()

    def gathered(self) -> nn.Module:
        """Return the ordinary module with the current weights, whole or in parts as given: all must call it."""
        trained = {n: p.detach() for n, p in self.module.named_parameters() if n not in self.frozen}
        weights = {n: p if n in self.held else shards.whole(p) for n, p in trained.items()}
        if self.over.relay:
            weights = self.over.relay.joined(weights)
        weights |= self.frozen
        filled = {id(p): nn.Parameter(weights[n], p.requires_grad) for n, p in self.template.named_parameters()}
        for part in self.template.modules():
            for name, p in list(part.named_parameters(recurse=False, remove_duplicate=False)):
                setattr(part, name, filled[id(p)])
        return self.template


class _Root(nn.Module):
    """Wraps the module, so that everything computed with it runs inside one forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        return compute(*args)


def _without_memory(module: nn.Module) -> nn.Module:
    """Copy a module with its weights on the meta device; tied weights stay tied."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, empty)


def _mesh_of(p: Tensor) -> DeviceMesh | None:
    return p.device_mesh if isinstance(p, DTensor) else None


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors that this process holds."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors.values()]
    return sum(t.numel() * t.element_size() for t in local)
