"""FSDP2: a module whose weights, gradients and optimizer state lie over the processes of a mesh while it is trained.

Layers are gathered one by one as they run (`fully_shard`); what is in none of them (embedding, last norm, head) is one
group more, there while the loss is computed, so that a loss may read the head's weights by itself. Gradients are SUMS
over processes: a loss is divided by the count of the whole batch already.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from didact.errors import UserError
from didact.parallel import launch, shards


@functools.lru_cache(maxsize=4)
def mesh(kind: str, device: str) -> DeviceMesh:
    """The processes as one row that shares the weights, or (`hsdp`) a row a node, each with all of them.

    Raises:
        UserError: there is one process, or nodes have different numbers of them.
    """
    launch.several(kind)
    world = launch.world()
    if kind == "fsdp2":
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    node = launch.on_node()
    if world % node:
        raise UserError(f"parallel = hsdp: {world} processes do not divide into nodes of {node}: take fsdp2")
    return init_device_mesh(device, (world // node, node), mesh_dim_names=("copy", "shard"))


class Sharded:
    """A module in place over the processes of a mesh, until `gathered` gives a whole one.

    Args:
        module: with all its weights, of which every process keeps its part; tensors that others hold too stay theirs.
        over: the mesh.
        layers: gathered apart; the rest of the module is one group.
    """

    def __init__(self, module: nn.Module, over: DeviceMesh, layers: Sequence[nn.Module]) -> None:
        self.frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
        self.hollow = _hollow(module)
        self.module, self.root = module, _Root(module)
        for part in (*layers, self.root):
            fully_shard(part, mesh=over)
        for part in self.root.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        with self.open():  # the first pass says which module is the root
            self.root(lambda: None)

    def __call__(self, compute: Callable[..., Any], *given: Any) -> Any:
        """`compute(*given)`, in which the module may be used and whose tensors may be differentiated."""
        return self.root(compute, *given)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Inside, the module can be used without gradients, as a whole one is: by all processes alike."""
        root: Any = self.root
        root.unshard()
        try:
            yield
        finally:
            root.reshard()

    def gathered(self) -> nn.Module:
        """A module like the one before, with all of the weights of now: all processes call."""
        now = {n: shards.whole(p.detach()) for n, p in self.module.named_parameters() if n not in self.frozen}
        now |= self.frozen
        filled = {id(p): nn.Parameter(now[n], p.requires_grad) for n, p in self.hollow.named_parameters()}
        for part in self.hollow.modules():
            for name, p in list(part.named_parameters(recurse=False, remove_duplicate=False)):
                setattr(part, name, filled[id(p)])
        return self.hollow


class _Root(nn.Module):
    """What holds the module: whatever is computed with it is computed in a forward pass of this."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[..., Any], *given: Any) -> Any:
        return compute(*given)


def _hollow(module: nn.Module) -> nn.Module:
    """A copy whose weights have shapes alone; weights that are one stay one."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()
    }
    return copy.deepcopy(module, empty)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that this process holds of them."""
    own = [t.to_local() if hasattr(t, "to_local") else t for t in tensors.values()]
    return sum(t.numel() * t.element_size() for t in own)
