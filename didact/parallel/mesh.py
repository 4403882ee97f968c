"""The processes of a run as a grid of pipeline stages, copies and tensor-parallel parts."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from didact.errors import UserError

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


def sizes(text: str) -> tuple[int, int, int]:
    """`2x1x2` as stages, copies and parts.

    Raises:
        UserError: it is no layout.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not found or not all(map(int, found.groups())):
        raise UserError(
            f"layout = {text}: must be PPxDPxTP, stages by copies by parts of a layer: 2x1x2 for 4 processes"
        )
    pp, dp, tp = map(int, found.groups())
    return pp, dp, tp


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
