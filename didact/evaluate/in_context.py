"""Examining a meta-trained classifier: on tasks it saw, fresh tasks and other data sets, beside what a user would use
otherwise and beside controls that must learn nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.evaluate import curves
from didact.evaluate.references import classifiers
from didact.learn import fit as loop
from didact.learn import task_pools
from didact.learn.task_pools import TaskPool

REPORT, WATCHED = 1, 2  # tags of draws that training never sees
LOOKS = 50  # how often a training looks whether the plateau of its loss has ended
FITTED = 100  # sequences that models of their own are fitted to
RATES = (
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
)  # of SGD: the best on the very rows of the report counts, so that it is not too weak
SGD_STEPS = 100


def hits(module: nn.Module, batch: Tensors) -> Tensor:
    """Right or not at every position, `(B, T)`."""
    was = module.training
    module.eval()
    with torch.no_grad():
        logits = torch.cat([task_pools.class_logits(module, part) for part in batch.split(256)])
    module.train(was)
    return (logits.argmax(-1) == batch["label"]).float()


def baselines(batch: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Hits `(B, T)` of neighbours, centroids and a network that learns row by row; and at the last position, `(b,)`, of
    logistic regression and of a network trained for `SGD_STEPS` steps on all rows before."""
    x, label, slots = batch["x"], batch["label"], batch["y"].shape[-1]
    along = {
        "1 neighbour": classifiers.neighbours(x, label, slots, 1),
        "3 neighbours": classifiers.neighbours(x, label, slots, 3),
        "centroids": classifiers.centroids(x, label, slots),
        "MLP, a step a row": _best(lambda rate: classifiers.perceptron(x, label, slots, rate), label),
    }
    few, own, last = x[:FITTED], label[:FITTED], label[:FITTED, -1]
    fitted = {
        "logistic regression": classifiers.logistic(few, own, own.shape[1] - 1),
        f"MLP, {SGD_STEPS} steps": _best(lambda rate: classifiers.perceptron(few, own, slots, rate, SGD_STEPS), last),
    }
    return {n: (guess == label).float() for n, guess in along.items()}, {
        n: (guess == last).float() for n, guess in fitted.items()
    }


def _best(predict: Callable[[float], Tensor], label: Tensor) -> Tensor:
    """What is right most often, of all rates."""
    return max(map(predict, RATES), key=lambda guess: int((guess == label).sum()))


@dataclass(frozen=True)
class Examined:
    """Hits of a module by where they were made, and what to report of them."""

    hits: Mapping[str, Tensor]
    chance: float
    findings: dict[str, Any]

    @property
    def regime(self) -> str:
        """Which of the regimes this is."""
        return curves.regime(self.hits["seen"], self.hits["unseen"], self.chance)


def examine(module: nn.Module, untrained: nn.Module, pools: Mapping[str, TaskPool], count: int, seed: int) -> Examined:
    """Everything of one module, each pool with so many sequences of rows that training did not see.

    Args:
        module: trained.
        untrained: the same as it began.
        pools: `seen`, tasks of training; `unseen`, fresh tasks of the same data; others of other data.
        count: sequences.
        seed: of their draw.

    Raises:
        UserError: it does better than is possible, on the first position or on random labels.
    """
    batches = {name: pool((seed, 0, REPORT), count) for name, pool in pools.items()}
    found, unseen = {name: hits(module, batch) for name, batch in batches.items()}, pools["unseen"]
    curves.check_chance(found["unseen"][:, 0], unseen.chance, "first position of unseen tasks")
    found["random labels"] = hits(module, unseen.but(labels="random")((seed, 0, REPORT), count))
    curves.check_chance(found["random labels"], unseen.chance, "tasks with random labels")
    found["untrained"] = hits(untrained, batches["unseen"])
    report: dict[str, Any] = {"curves": {name: curves.curve(v) for name, v in found.items()}}
    report["improvement"] = {name: curves.improvement(v)._asdict() for name, v in found.items()}
    report["accuracy"] = {name: curves.level(v)._asdict() for name, v in found.items()}
    report["repeated_rows"] = repeated(batches["unseen"])
    report["baselines"] = {}
    for name in (n for n in batches if n != "seen"):
        along, fitted = baselines(batches[name])
        report["baselines"][name] = {
            "curves": {k: curves.curve(v) for k, v in along.items()},
            "accuracy": {k: curves.level(v)._asdict() for k, v in along.items()}
            | {k: curves.level(v[:, None])._asdict() for k, v in fitted.items()},
        }
    return Examined(found, unseen.chance, report)


def repeated(batch: Tensors) -> float:
    """The share of rows that stood in their sequence before: a learner that only looks those up is right on them."""
    x = batch["x"]
    same = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") == 0
    return float(same.tril(-1).any(-1).float().mean())


class Plateau(loop.Hook):
    """Notes the first step at which fresh tasks show improvement within a sequence: the end of the loss plateau."""

    def __init__(self, unseen: TaskPool, seed: int, steps: int, count: int = 128) -> None:
        self.batch, self.every = unseen((seed, 0, WATCHED), count), max(1, steps // LOOKS)
        self.left: int | None = None

    def after(self, step: loop.Step) -> None:
        """Look every so many steps, until it has ended."""
        look = self.left is None and (step.step + 1) % self.every == 0
        if look and curves.improvement(hits(step.module, self.batch)).low > curves.ENOUGH:
            self.left = step.step + 1

    def state(self) -> Any:
        """The step."""
        return self.left

    def restore(self, state: Any) -> None:
        """Take it back."""
        self.left = state
