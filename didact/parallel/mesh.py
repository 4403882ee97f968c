"""The processes of a run as a grid of pipeline stages, copies and tensor-parallel parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from didact.errors import UserError
from didact.parallel import launch

AXES = ("pp", "dp", "tp")


@dataclass(frozen=True)
class Grid:
    """`rank = (p dp + d) tp + t`: parts of a layer are neighbours, stages furthest apart. One process has no mesh."""

    pp: int = 1
    dp: int = 1
    tp: int = 1
    mesh: DeviceMesh | None = None

    def __str__(self) -> str:
        """As it is given: `2x1x2`."""
        return f"{self.pp}x{self.dp}x{self.tp}"

    def rank(self, axis: str) -> int:
        """Where on an axis this process is."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(axis)

    def of(self, axis: str) -> DeviceMesh:
        """The processes that differ from this one on that axis only."""
        assert self.mesh is not None
        return self.mesh[axis]

    @property
    def stage(self) -> int:
        """The pipeline stage of this process."""
        return self.rank("pp")

    @property
    def last(self) -> bool:
        """Whether the loss is computed here."""
        return self.stage == self.pp - 1


def grid(pp: int, dp: int, tp: int, device: torch.device) -> Grid:
    """The grid of the processes that a launcher started; they meet here if they have not yet.

    Raises:
        UserError: they are more or fewer than the layout has.
    """
    if pp * dp * tp == 1:
        return Grid()
    if not dist.is_initialized():
        dist.init_process_group("gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl")
    if (world := dist.get_world_size()) != pp * dp * tp:
        raise UserError(f"layout = {pp}x{dp}x{tp}: takes {pp * dp * tp} processes, and there are {world}")
    return Grid(pp, dp, tp, init_device_mesh(device.type, (pp, dp, tp), mesh_dim_names=AXES))


class Over(NamedTuple):
    """The processes that a module lies over: those a layer's weights lie over, those that the rest's do, and those
    that the layers are split over.
    """

    layers: DeviceMesh
    rest: DeviceMesh
    parts: DeviceMesh | None = None

    @property
    def copy(self) -> tuple[int, int]:
        """Which rows of a batch are this process's: its number, and of how many. Parts of a layer see the same."""
        if self.parts is None:
            return dist.get_rank(), dist.get_world_size()
        return self.layers.get_local_rank(), self.layers.size()

    @property
    def alike(self) -> int:
        """How many processes compute the same: all that is in no split layer."""
        return 1 if self.parts is None else self.parts.size()

    @property
    def first(self) -> bool:
        """Whether this is the first of those."""
        return self.parts is None or self.parts.get_local_rank() == 0


@functools.lru_cache(maxsize=4)
def over(kind: str, device: str) -> Over:
    """The processes as one row that shares the weights, or (`hsdp`) a row a node, each with all of them, or as a
    layout `1xDPxTP` has it: layers over DP copies of TP parts, and what is in none over all.

    Raises:
        UserError: there are others than that takes, or nodes have different numbers of them.
    """
    launch.several(kind)
    world = launch.world()
    if sizes := launch.parallel(kind):
        laid = grid(*sizes, torch.device(device))
        rest = init_device_mesh(device, (world,), mesh_dim_names=("shard",))
        return Over(laid.of("dp"), rest, laid.of("tp")) if laid.tp > 1 else Over(rest, rest)
    if kind == "fsdp2":
        row = init_device_mesh(device, (world,), mesh_dim_names=("shard",))
        return Over(row, row)
    node = launch.on_node()
    if world % node:
        raise UserError(f"parallel = hsdp: {world} processes do not divide into nodes of {node}: take fsdp2")
    rows = init_device_mesh(device, (world // node, node), mesh_dim_names=("copy", "shard"))
    return Over(rows, rows)
