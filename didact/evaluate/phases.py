"""Phase map: one training for every combination of mixer, width, number of tasks and batch size."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from didact.bounds import Count, Whole
from didact.evaluate import curves, in_context
from didact.learn import episodes, task_pools
from didact.learn.task_pools import TaskPool
from didact.models.sequence import Mixer, SequenceLearner
from didact.types import Fit


@dataclass(frozen=True, kw_only=True)
class PhaseMap:
    """Further trainings: all combinations of these values, otherwise configured as the main one.

    Args:
        mixers: sequence mixers (black boxes).
        widths: token widths.
        tasks: numbers of tasks; 0 draws fresh tasks without end.
        rows: sequences per step.
        steps: training steps; by default as many as the main training.
    """

    mixers: tuple[Mixer, ...] = ()
    widths: tuple[Count, ...] = ()
    tasks: tuple[Whole, ...] = ()
    rows: tuple[Count, ...] = ()
    steps: Count | None = None

    def cells(self) -> list[dict[str, Any]]:
        """The settings that each training changes."""
        axes = {"mixer": self.mixers, "width": self.widths, "tasks": self.tasks, "rows": self.rows}
        varied = {name: values for name, values in axes.items() if values}
        return [dict(zip(varied, cell, strict=True)) for cell in itertools.product(*varied.values())] if varied else []


def mapped(
    phases: PhaseMap,
    build: Callable[..., SequenceLearner],
    law: Callable[[TaskPool, int], episodes.Sampler],
    pools: Mapping[str, TaskPool],
    train: TaskPool,
    fit: Fit,
    sequences: int,
) -> list[dict[str, Any]]:
    """Train and evaluate every cell: parameters, state size, regime, accuracy and improvement on every pool.

    Args:
        phases: the varied settings.
        build: builds a learner from changes to its configuration.
        law: the training sampler for a pool and a number of steps.
        pools: task pools to evaluate on, by name: `seen`, `unseen` and others.
        train: the pool to train on.
        fit: training configuration.
        sequences: evaluation sequences per pool.
    """
    out = []
    for cell in phases.cells():
        shape = {k: v for k, v in cell.items() if k in ("mixer", "width")}
        cell_fit = fit.replace(rows=cell.get("rows", fit.rows), steps=phases.steps or fit.steps)
        changes = {"tasks": cell["tasks"]} if "tasks" in cell else {}
        plateau = in_context.Plateau(pools["unseen"], fit.seed, cell_fit.total_steps(0))
        run = episodes.meta_train(
            functools.partial(build, **shape), law(train.but(**changes), cell_fit.total_steps(0)), cell_fit,
            loss=task_pools.class_loss, hooks=(plateau,), quiet=True,
        )[0]  # fmt: skip
        assert isinstance(run.module, SequenceLearner)
        hits = {
            name: in_context.hits(
                run.module, pool.but(**changes if name == "seen" else {})((fit.seed, 0, in_context.REPORT), sequences)
            )
            for name, pool in pools.items()
        }
        out.append(
            cell
            | {
                "parameters": sum(p.numel() for p in run.module.parameters()),
                "state_size": run.module.state_size(train.length),
                "regime": curves.regime(hits["seen"], hits["unseen"], pools["unseen"].chance),
                "plateau_exit_step": plateau.left,
                "accuracy": {name: curves.level(v)._asdict() for name, v in hits.items()},
                "improvement": {name: curves.improvement(v)._asdict() for name, v in hits.items()},
            }
        )
    return out


def untrained(build: Callable[[], SequenceLearner], seed: int) -> SequenceLearner:
    """The learner as initialised for training with this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed * 1000)
        return build()
