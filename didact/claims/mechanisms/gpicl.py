"""The claim of gpicl: with enough tasks a causal sequence model learns to learn, with few it memorizes them.

World: two Gaussian clouds in four dimensions (quick: an LSTM), four in sixteen (full: a transformer). Every task maps
the inputs and permutes the classes anew. Learning is measured on fresh tasks and on data sets with other prototypes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from didact import mechanisms
from didact.claims import runner
from didact.claims.lab import bound, difference, equivalence
from didact.claims.problem import Problem
from didact.data.reduction import Reduction
from didact.evaluate import curves, in_context
from didact.learn import episodes, task_pools
from didact.models.sequence import Mixer, SequenceConfig
from didact.types import Example, Fit
from didact.worlds.prototypes import Prototypes


@dataclasses.dataclass(frozen=True)
class Size:
    """A tier's sizes: world, rows per sequence, learner, training, evaluated sequences, widths of two GRUs."""

    classes: int
    dim: int
    length: int
    mixer: Mixer
    layers: int
    width: int
    heads: int
    lr: float
    steps: int
    rows: int
    sequences: int
    states: tuple[int, int]


# Chosen on seeds 1000-1003: the learning rate, of 4e-3 and 1e-2. Quick has an LSTM, as small transformers do not leave
# the loss plateau within seconds on every seed (two of five were still there after 500 steps).
SIZES = {
    "smoke": Size(2, 4, 8, "lstm", 1, 16, 1, 1e-2, 20, 16, 100, (4, 16)),
    "quick": Size(2, 4, 16, "lstm", 1, 64, 1, 1e-2, 400, 32, 500, (8, 64)),
    "full": Size(4, 16, 24, "transformer", 3, 64, 4, 1e-3, 2_500, 64, 500, (32, 128)),  # an hour on two cores
}
ENDLESS, FEW, SOME = 0, 4, 64
BASES, OTHERS = 8, 20  # numbers of data sets: several, as some pairs of clouds are close together, others far apart
FRESH = 200  # added to every seed: 0-4 and 100-104 were measured with one data set, whose draw was most of the variance


def problem(seed: int) -> Problem:
    """The embedded example: clouds in a user's format, and other clouds; VSML learns to learn them quickly."""
    world = Prototypes(classes=4, dim=8)
    return Problem(
        data={"datasets": [world((seed, 0), 100, "clouds")], "new": [world((seed, 1), 60, "other clouds")]},
        options={
            "learner.mixer": "vsml", "learner.width": 8, "slots": 4, "length": 16, "bias": 0.0, "sequences": 300,
        },
        fit={"lr": 1e-2, "steps": 200, "rows": 32, "warmup_steps": 20},
    )  # fmt: skip


def run(
    seed: int, tier: str, arms: Sequence[int] = (ENDLESS, FEW, SOME), states: bool = True, **learner: Any
) -> runner.Measured:
    """Train on one seed for each number of tasks and for two state sizes; measure on fresh tasks and other data."""
    size, seed = SIZES[tier], seed + FRESH
    out: dict[str, dict[str, float]] = {}
    for tasks in arms:
        out[f"tasks {tasks}" if tasks else "endless"] = _measure(seed, size, tasks, **learner)
    for name, width in zip(("little state", "much state"), size.states if states else (), strict=False):
        out[name] = _measure(seed, size, ENDLESS, mixer="gru", layers=1, width=width)
    return out


def _measure(seed: int, size: Size, tasks: int, **learner: Any) -> dict[str, float]:
    world = Prototypes(classes=size.classes, dim=size.dim)
    shape = {"mixer": size.mixer, "layers": size.layers, "width": size.width, "heads": size.heads} | learner
    fit = Fit(
        lr=size.lr, steps=size.steps, rows=size.rows, schedule="cosine", warmup_steps=size.steps // 10,
        betas=(0.9, 0.98), seed=seed,
    )  # fmt: skip
    result = mechanisms.gpicl(
        [world((seed, 0, i), 100, f"clouds {i}") for i in range(BASES)], learner=SequenceConfig(**shape), tasks=tasks,
        slots=size.classes, length=size.length, bias=0.0, sequences=size.sequences, fit=fit,
    )  # fmt: skip
    module: Any = result.models["learner"]
    transfer = _transfer(module.module, [world((seed, 1, i), 60, f"other {i}") for i in range(OTHERS)], size, seed)
    findings = result.findings
    names = {"seen": "seen", "unseen": "unseen", "random": "random labels"}
    scores = {f"delta_{k}": findings["improvement"][name]["estimate"] for k, name in names.items()}
    scores |= {f"level_{k}": findings["accuracy"][name]["estimate"] for k, name in names.items()}
    baselines = findings["baselines"]["unseen"]["accuracy"]
    return scores | {
        "delta_other": transfer,
        "first": findings["curves"]["unseen"]["estimate"][0] - findings["chance"],
        "of_centroids": scores["level_unseen"] / baselines["centroids"]["estimate"],
        "level_sgd": baselines["MLP, a step a row"]["estimate"],
        "level_mlp": baselines["MLP, 100 steps"]["estimate"],
        "level_untrained": findings["accuracy"]["untrained"]["estimate"],
        "state_size": findings["state_size"],
        "plateau_exit": findings["plateau_exit_step"] or fit.total_steps(0),
    }


def _transfer(module: Any, sets: Sequence[Example], size: Size, seed: int) -> float:
    """Return the improvement within sequences of data sets that were not in training."""
    reduction = Reduction(module.mean.double().numpy(), module.basis.double().numpy())
    data = [dataset.mapped(reduction) for dataset in task_pools.labelled(sets)]
    pool = task_pools.TaskPool(data, size.length, size.classes, seed=seed + 2)
    return curves.improvement(in_context.hits(module, pool((seed, 0, 9), 2 * size.sequences))).estimate


def unshifted(y: Tensor) -> Tensor:
    """Sabotage: put each row's own label into its token."""
    return y


def withheld(y: Tensor) -> Tensor:
    """Sabotage: no label is ever shown."""
    return torch.zeros_like(y)


def unmapped(pool: task_pools.TaskPool, bias: float, natural: float, until: float = 0) -> episodes.Sampler:
    """Sabotage: training neither maps the inputs nor permutes the classes."""
    return pool.but(bias=1.0, natural=1.0)


def four(pool: task_pools.TaskPool, bias: float, natural: float, until: float = 0) -> episodes.Sampler:
    """Sabotage: the training pool has only four tasks."""
    return pool.but(tasks=FEW)


def unchecked(hits: Tensor, chance: float, where: str) -> None:
    """Skip the check for leaks: the claim's own test must detect it."""


LEARNS, FIRST, APART = "endless tasks: improves on fresh ones", "nothing is known at first", "endless against four"
ONE: dict[str, Any] = {"arms": (ENDLESS,), "states": False}
CLAIM = runner.Claim(
    method="gpicl",
    text=(
        "A causal sequence model (an LSTM at quick, a transformer at full) meta-trained on ever fresh tasks (random "
        "linear maps of the inputs, random places of the classes) improves within sequences of unseen tasks and of "
        "other data sets; trained on four tasks it is right on those and does not improve on others."
    ),
    run=run,
    tests=(
        bound(LEARNS, "endless.delta_unseen", 0.2, "accuracy"),
        difference(APART, "endless.delta_unseen", "tasks 4.delta_unseen", "accuracy", null=0.15),
        equivalence("four tasks: no improvement on fresh ones", "tasks 4.delta_unseen", None, 0.1, "accuracy"),
        difference("four tasks: right on those it saw", "tasks 4.level_seen", "tasks 4.level_unseen", "accuracy",
                   null=0.2),
        bound("endless tasks: improves on other data sets", "endless.delta_other", 0.15, "accuracy"),
        equivalence(FIRST, "endless.first", None, 0.05, "accuracy above chance"),
        equivalence("random labels teach nothing", "endless.delta_random", None, 0.05, "accuracy"),
        difference("64 tasks against four", "tasks 64.delta_unseen", "tasks 4.delta_unseen", "accuracy", reported=True),
        bound("near to the nearest class mean", "endless.of_centroids", 0.8, "share", reported=True),
        difference("more right than a network with a step of SGD a row", "endless.level_unseen", "endless.level_sgd",
                   "accuracy", reported=True),
        difference("than one with a hundred steps on all", "endless.level_unseen", "endless.level_mlp", "accuracy",
                   reported=True),
        difference("more state, more right", "much state.level_unseen", "little state.level_unseen", "accuracy",
                   reported=True),
    ),
    sabotages=(
        runner.Sabotage("labels not shifted", FIRST, None,
                        {"didact.models.sequence:before": unshifted,
                         "didact.evaluate.curves:check_chance": unchecked}, ONE),
        runner.Sabotage("labels withheld", LEARNS, None, {"didact.models.sequence:before": withheld}, ONE),
        runner.Sabotage("the endless pool has four tasks", LEARNS, None, {"didact.learn.task_pools:law": four}, ONE),
        runner.Sabotage("inputs neither mapped nor classes permuted", LEARNS, None,
                        {"didact.learn.task_pools:law": unmapped}, ONE),
    ),
)  # fmt: skip
