"""Layout (pipeline stages, copies, parts of a layer) of a training: the requested one if legal, or the planner's."""

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


def chosen(model: Model, layout: str | None, fit: Fit, window: int, device: torch.device) -> Grid:
    """Return the grid of a layout `PPxDPxTP`; by default of the planner's best for the running processes.

    `fit.parallel` may name the layout instead; for FSDP2 it is copies that share the weights.

    Raises:
        UserError: the layout is not legal; the message lists those that are.
    """
    world = launch.world()
    if fit.parallel != "ddp":
        launch.several(fit.parallel)
        if layout or fit.parallel == "hsdp":
            raise UserError(f"parallel = {fit.parallel}: this training takes a layout instead: 1x{world}x1 is FSDP2")
        layout = fit.parallel if launch.parallel(fit.parallel) else f"1x{world}x1"
    sizes = launch.sizes(layout) if layout else (1, 1, 1)
    if layout and (count := sizes[0] * sizes[1] * sizes[2]) != world:
        running = "is 1" if world == 1 else f"are {world}"
        raise UserError(
            f"layout = {layout}: takes {count} processes, and there {running}: start {count} "
            f"(torchrun --nproc_per_node {count} -m didact ...)"
        )
    if world > 1:
        job = _job(model, fit.rows, window, device)
        if layout and (reason := refusal(model, job, *sizes)):
            legal = ", ".join("x".join(map(str, grid_sizes)) for grid_sizes in _legal(model, job))
            raise UserError(f"layout = {layout}: {reason}; layouts for {world} processes: {legal or 'none'}")
        if not layout:
            sizes = _best(model, job)
    return mesh.grid(*sizes, device)


def refusal(model: Model, job: Job, pp: int, dp: int, tp: int) -> str | None:
    """Say why a layout cannot train a model, None where it can. Batches are padded, so that they always divide."""
    kind = str(model.config.model_type)
    if pp > 1 and kind not in stages.PARTS:
        return f"stages are possible for {', '.join(sorted(stages.PARTS))}, and this is {kind}: give 1 stage"
    if tp > 1 and (reason := tensor.refusal(model.config)):
        return f"{reason}: give 1 part"
    padded = -(-job.batch // dp) * dp
    return planner.refusal(job, Layout(pp=pp, dp=dp, tp=tp, batch=padded))


def _legal(model: Model, job: Job) -> Iterator[tuple[int, int, int]]:
    world = job.cluster.gpus
    for pp in range(1, world + 1):
        for tp in range(1, world // pp + 1):
            if world % (pp * tp) == 0 and refusal(model, job, pp, world // (pp * tp), tp) is None:
                yield pp, world // (pp * tp), tp


def _best(model: Model, job: Job) -> tuple[int, int, int]:
    """Return the fastest layout of the planner that can be trained here, else the one that needs least memory."""
    legal = set(_legal(model, job))
    fixed: dict[str, Any] = {"recompute": "none", "chunks": 1, "sp": False}
    plan = planner.plan(job, fixed)
    for candidate in (*plan.ranked, *plan.large):
        if (sizes := (candidate.layout.pp, candidate.layout.dp, candidate.layout.tp)) in legal:
            return sizes
    raise UserError(f"no layout of {job.cluster.gpus} processes can train this model: start fewer")


def _job(model: Model, rows: int, window: int, device: torch.device) -> Job:
    world = launch.world()
    node = launch.on_node()
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else _memory() / node
    cluster = ClusterSpec(gpus=world, gpus_per_node=node, memory=float(memory))
    padded = -(-rows // world) * world
    return Job(within(shape.of(model.config), window), cluster, padded, POLICIES["fp32"])


def _memory() -> float:
    """Bytes of this machine's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
