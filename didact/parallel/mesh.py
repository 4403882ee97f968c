"""The processes of a run as a grid of pipeline stages, replicas and tensor-parallel parts."""

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
    """`rank = (p dp + d) tp + t`: tensor-parallel parts are neighbours, stages furthest apart; one process: no mesh."""

    pp: int = 1
    dp: int = 1
    tp: int = 1
    mesh: DeviceMesh | None = None

    def __str__(self) -> str:
        """The layout as an option, such as `2x1x2`."""
        return f"{self.pp}x{self.dp}x{self.tp}"

    def rank(self, axis: str) -> int:
        """Return the coordinate of this process on an axis."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(axis)

    def of(self, axis: str) -> DeviceMesh:
        """Return the processes that differ from this one on `axis` only."""
        assert self.mesh is not None
        return self.mesh[axis]

    @property
    def stage(self) -> int:
        """The pipeline stage of this process."""
        return self.rank("pp")

    @property
    def last(self) -> bool:
        """Whether this is the last stage, which computes the loss."""
        return self.stage == self.pp - 1


def grid(pp: int, dp: int, tp: int, device: torch.device) -> Grid:
    """Return the grid of the processes that a launcher started; initialises the process group if necessary.

    Raises:
        UserError: their number is not that of the layout.
    """
    if pp * dp * tp == 1:
        return Grid()
    if not dist.is_initialized():
        dist.init_process_group("gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl")
    if (world := dist.get_world_size()) != pp * dp * tp:
        raise UserError(f"layout = {pp}x{dp}x{tp}: needs {pp * dp * tp} processes, but {world} were started")
    return Grid(pp, dp, tp, init_device_mesh(device.type, (pp, dp, tp), mesh_dim_names=AXES))


class Over(NamedTuple):
    """The meshes that a module is sharded over: `layers` for the layers' weights, `rest` for the other weights of a
    stage; for a layout `PPxDPxTP` also the grid and the pipeline.
    """

    layers: DeviceMesh
    rest: DeviceMesh
    grid: Grid | None = None
    relay: Relay | None = None

    @property
    def copy(self) -> tuple[int, int]:
        """This process's replica, which determines its rows of a batch: `(index, number of replicas)`."""
        return (self.grid.rank("dp"), self.grid.dp) if self.grid else (dist.get_rank(), dist.get_world_size())

    @property
    def parts(self) -> DeviceMesh | None:
        """The processes that layers are split over by tensor parallelism; None if they are not."""
        return self.grid.of("tp") if self.grid and self.grid.tp > 1 else None

    @property
    def alone(self) -> bool:
        """Whether no other process works on this one's rows."""
        return self.grid is None or self.grid.pp * self.grid.tp == 1

    @property
    def alike(self) -> int:
        """Number of processes that compute everything outside of split layers redundantly."""
        return self.grid.tp if self.grid else 1

    @property
    def reports(self) -> bool:
        """Whether this process reports: the first of the redundant ones, on the stage that computes losses."""
        return self.grid is None or (self.grid.last and self.grid.rank("tp") == 0)

    @property
    def stage(self) -> int:
        """Number of processes of a stage."""
        return dist.get_world_size() // (self.grid.pp if self.grid else 1)


@functools.lru_cache(maxsize=4)
def over(kind: str, device: str) -> Over:
    """Return the meshes of `kind`: `fsdp2` shards over all processes; `hsdp` over those of a node, one replica a node;
    a layout `PPxDPxTP` shards a stage's layers over DP replicas of TP parts, other weights over the whole stage.

    Raises:
        UserError: the number of processes does not fit, or differs between nodes.
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
        raise UserError(f"parallel = hsdp: {world} processes do not divide into nodes of {node}: use fsdp2")
    rows = init_device_mesh(device, (world // node, node), mesh_dim_names=("copy", "shard"))
    return Over(rows, rows)
