"""Which stages, copies and parts a training runs over: as asked for where that is legal, else what the planner says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from didact.models import shape
from didact.models.model import Model
from didact.parallel import launch, mesh, planner, stages, tensor
from didact.parallel.memory import POLICIES
from didact.parallel.mesh import Grid
from didact.parallel.planner import Job
from didact.parallel.spec import ClusterSpec, Layout, within
from didact.types import Fit, UserError


def chosen(model: Model, asked: str | None, fit: Fit, window: int, device: torch.device) -> Grid:
    """The grid of a layout `PPxDPxTP`; by default of the planner's best for the processes there are.

    Where `fit.parallel` names one it is that, and where it asks for FSDP2 they are copies that share the weights.

    Raises:
        UserError: what is asked for is not legal; what is, is told.
    """
    world = launch.world()
    if fit.parallel != "ddp":
        launch.several(fit.parallel)
        if asked or fit.parallel == "hsdp":
            raise UserError(
                f"parallel = {fit.parallel}: this training takes a layout in its place: 1x{world}x1 is FSDP2"
            )
        asked = fit.parallel if launch.parallel(fit.parallel) else f"1x{world}x1"
    sizes = launch.sizes(asked) if asked else (1, 1, 1)
    if asked and (count := sizes[0] * sizes[1] * sizes[2]) != world:
        there = "is 1" if world == 1 else f"are {world}"
        raise UserError(
            f"layout = {asked}: takes {count} processes, and there {there}: start {count} "
            f"(torchrun --nproc_per_node {count} -m didact ...)"
        )
    if world > 1:
        job = _job(model, fit.rows, window, device)
        if asked and (why := refusal(model, job, *sizes)):
            legal = ", ".join("x".join(map(str, each)) for each in _legal(model, job))
            raise UserError(f"layout = {asked}: {why}; {world} processes serve as {legal or 'none'}")
        if not asked:
            sizes = _best(model, job)
    return mesh.grid(*sizes, device)


def refusal(model: Model, job: Job, pp: int, dp: int, tp: int) -> str | None:
    """Why a model cannot be trained so; None where it can. Batches are filled up, so that they always divide."""
    kind = str(model.config.model_type)
    if pp > 1 and kind not in stages.PARTS:
        return f"stages are cut of {', '.join(sorted(stages.PARTS))}, and this is {kind}: give 1 stage"
    if tp > 1 and (why := tensor.refusal(model.config)):
        return f"{why}: give 1 part"
    whole = -(-job.batch // dp) * dp
    return planner.refusal(job, Layout(pp=pp, dp=dp, tp=tp, batch=whole))


def _legal(model: Model, job: Job) -> Iterator[tuple[int, int, int]]:
    world = job.cluster.gpus
    for pp in range(1, world + 1):
        for tp in range(1, world // pp + 1):
            if world % (pp * tp) == 0 and refusal(model, job, pp, world // (pp * tp), tp) is None:
                yield pp, world // (pp * tp), tp


def _best(model: Model, job: Job) -> tuple[int, int, int]:
    """The planner's fastest of what can be trained here, else what needs least."""
    able = set(_legal(model, job))
    fixed: dict[str, Any] = {"recompute": "none", "chunks": 1, "sp": False}
    found = planner.plan(job, fixed)
    for told in (*found.ranked, *found.large):
        if (sizes := (told.layout.pp, told.layout.dp, told.layout.tp)) in able:
            return sizes
    raise UserError(f"{job.cluster.gpus} processes serve this model in no layout: start fewer")


def _job(model: Model, rows: int, window: int, device: torch.device) -> Job:
    world = launch.world()
    node = launch.on_node()
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else _memory() / node
    cluster = ClusterSpec(gpus=world, gpus_per_node=node, memory=float(memory))
    whole = -(-rows // world) * world
    return Job(within(shape.of(model.config), window), cluster, whole, POLICIES["fp32"])


def _memory() -> float:
    """Bytes of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
