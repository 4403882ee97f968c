"""The map of what is learned where: one training for every size, number of tasks, black box and batch."""

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
    """Trainings beside the one asked for: all combinations of what is given, each as that one but for these.

    Args:
        mixers: black boxes.
        widths: of a token.
        tasks: how many tasks; 0 draws fresh ones for ever.
        rows: sequences of a step.
        steps: of every one; as many as the run by default.
    """

    mixers: tuple[Mixer, ...] = ()
    widths: tuple[Count, ...] = ()
    tasks: tuple[Whole, ...] = ()
    rows: tuple[Count, ...] = ()
    steps: Count | None = None

    def cells(self) -> list[dict[str, Any]]:
        """What each of them changes."""
        axes = {"mixer": self.mixers, "width": self.widths, "tasks": self.tasks, "rows": self.rows}
        given = {name: values for name, values in axes.items() if values}
        return [dict(zip(given, chosen, strict=True)) for chosen in itertools.product(*given.values())] if given else []


def mapped(
    phases: PhaseMap,
    build: Callable[..., SequenceLearner],
    law: Callable[[TaskPool, int], episodes.Sampler],
    pools: Mapping[str, TaskPool],
    train: TaskPool,
    fit: Fit,
    sequences: int,
) -> list[dict[str, Any]]:
    """Train and examine every cell: its size and state, accuracy and improvement on seen, fresh and new tasks, regime.

    Args:
        phases: what is varied.
        build: a learner, with changes of its configuration.
        law: what is trained on, of a pool and the number of steps.
        pools: what is examined.
        train: the pool of training.
        fit: of every training.
        sequences: of every pool.
    """
    out = []
    for cell in phases.cells():
        shape = {k: v for k, v in cell.items() if k in ("mixer", "width")}
        own = fit.replace(rows=cell.get("rows", fit.rows), steps=phases.steps or fit.steps)
        count = {"tasks": cell["tasks"]} if "tasks" in cell else {}
        plateau = in_context.Plateau(pools["unseen"], fit.seed, own.total_steps(0))
        run = episodes.meta_train(
            functools.partial(build, **shape), law(train.but(**count), own.total_steps(0)), own,
            loss=task_pools.class_loss, hooks=(plateau,), quiet=True,
        )[0]  # fmt: skip
        assert isinstance(run.module, SequenceLearner)
        hits = {
            name: in_context.hits(
                run.module, pool.but(**count if name == "seen" else {})((fit.seed, 0, in_context.REPORT), sequences)
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
    """The learner as training of this seed found it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed * 1000)
        return build()
