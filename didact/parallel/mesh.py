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
from didact.parallel.relay import Relay

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
    """The processes that a module lies over: those a layer's weights lie over, those that the rest's of a stage do,
    and as a layout, where it is one, the grid and the pipeline.
    """

    layers: DeviceMesh
    rest: DeviceMesh
    grid: Grid | None = None
    relay: Relay | None = None

    @property
    def copy(self) -> tuple[int, int]:
        """Which rows of a batch are this process's: its number, and of how many. Those of a copy have the same."""
        return (self.grid.rank("dp"), self.grid.dp) if self.grid else (dist.get_rank(), dist.get_world_size())

    @property
    def parts(self) -> DeviceMesh | None:
        """The processes that layers are split over."""
        return self.grid.of("tp") if self.grid and self.grid.tp > 1 else None

    @property
    def alone(self) -> bool:
        """Whether no other process has the rows of this one."""
        return self.grid is None or self.grid.pp * self.grid.tp == 1

    @property
    def alike(self) -> int:
        """How many processes compute the same: all that is in no split layer."""
        return self.grid.tp if self.grid else 1

    @property
    def tells(self) -> bool:
        """Whether it is the first of those, and losses are computed here."""
        return self.grid is None or (self.grid.last and self.grid.rank("tp") == 0)

    @property
    def stage(self) -> int:
        """How many processes a stage has."""
        return dist.get_world_size() // (self.grid.pp if self.grid else 1)


@functools.lru_cache(maxsize=4)
def over(kind: str, device: str) -> Over:
    """The processes as one row that shares the weights, or (`hsdp`) a row a node, each with all of them, or as a
    layout `PPxDPxTP`: the layers of a stage over DP copies of TP parts, and what is in none over all of its stage.

    Raises:
        UserError: there are others than that takes, or nodes have different numbers of them.
    """
    launch.several(kind)
    world = launch.world()
    if sizes := launch.parallel(kind):
        layout = grid(*sizes, torch.device(device))
        assert layout.mesh is not None
        relay = Relay(layout.pp, layout.dp * layout.tp, kind) if layout.pp > 1 else None
        return Over(layout.of("dp"), layout.mesh["dp", "tp"]._flatten("stage"), layout, relay)
    if kind == "fsdp2":
        row = init_device_mesh(device, (world,), mesh_dim_names=("shard",))
        return Over(row, row)
    node = launch.on_node()
    if world % node:
        raise UserError(f"parallel = hsdp: {world} processes do not divide into nodes of {node}: take fsdp2")
    rows = init_device_mesh(device, (world // node, node), mesh_dim_names=("copy", "shard"))
    return Over(rows, rows)
