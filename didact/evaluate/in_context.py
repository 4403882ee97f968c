"""Evaluation of a meta-trained classifier on training tasks, fresh tasks and other data sets, with ordinary
classifiers as baselines and with controls in which nothing can be learned.
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
LOOKS = 50  # checks per training of whether the loss plateau has ended
FITTED = 100  # sequences with a baseline model fitted to each
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of SGD: the best on the reported rows counts, for a strong baseline
SGD_STEPS = 100


def hits(module: nn.Module, batch: Tensors) -> Tensor:
    """Correct or not at every position, `(B, T)`."""
    training = module.training
    module.eval()
    with torch.no_grad():
        logits = torch.cat([task_pools.class_logits(module, part) for part in batch.split(256)])
    module.train(training)
    return (logits.argmax(-1) == batch["label"]).float()


def baselines(batch: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Hits `(B, T)` of neighbours, centroids and a network that learns row by row; and, at the last position, `(b,)`,
    of logistic regression and of a network trained for `SGD_STEPS` steps on all earlier rows."""
    x, label, slots = batch["x"], batch["label"], batch["y"].shape[-1]
    by_position = {
        "1 neighbour": classifiers.neighbours(x, label, slots, 1),
        "3 neighbours": classifiers.neighbours(x, label, slots, 3),
        "centroids": classifiers.centroids(x, label, slots),
        "MLP, a step a row": _best(lambda rate: classifiers.perceptron(x, label, slots, rate), label),
    }
    inputs, labels, last = x[:FITTED], label[:FITTED], label[:FITTED, -1]
    fitted = {
        "logistic regression": classifiers.logistic(inputs, labels, labels.shape[1] - 1),
        f"MLP, {SGD_STEPS} steps": _best(
            lambda rate: classifiers.perceptron(inputs, labels, slots, rate, SGD_STEPS), last
        ),
    }
    return {n: (guess == label).float() for n, guess in by_position.items()}, {
        n: (guess == last).float() for n, guess in fitted.items()
    }


def _best(predict: Callable[[float], Tensor], label: Tensor) -> Tensor:
    """The prediction with the best rate."""
    return max(map(predict, RATES), key=lambda guess: int((guess == label).sum()))


@dataclass(frozen=True)
class Examined:
    """Hits of a module by task pool, and the findings to report."""

    hits: Mapping[str, Tensor]
    chance: float
    findings: dict[str, Any]

    @property
    def regime(self) -> str:
        """The regime: see `curves.regime`."""
        return curves.regime(self.hits["seen"], self.hits["unseen"], self.chance)


def examine(module: nn.Module, untrained: nn.Module, pools: Mapping[str, TaskPool], count: int, seed: int) -> Examined:
    """Evaluate one module on every pool, with `count` sequences of held-out rows each.

    Args:
        module: the trained module.
        untrained: the same module before training.
        pools: `seen`, training tasks; `unseen`, fresh tasks of the same data; others of other data.
        count: sequences.
        seed: seed of their draw.

    Raises:
        UserError: accuracy is above chance at the first position or on random labels.
    """
    batches = {name: pool((seed, 0, REPORT), count) for name, pool in pools.items()}
    by_pool, unseen = {name: hits(module, batch) for name, batch in batches.items()}, pools["unseen"]
    curves.check_chance(by_pool["unseen"][:, 0], unseen.chance, "first position of unseen tasks")
    by_pool["random labels"] = hits(module, unseen.but(labels="random")((seed, 0, REPORT), count))
    curves.check_chance(by_pool["random labels"], unseen.chance, "tasks with random labels")
    by_pool["untrained"] = hits(untrained, batches["unseen"])
    report: dict[str, Any] = {"curves": {name: curves.curve(v) for name, v in by_pool.items()}}
    report["improvement"] = {name: curves.improvement(v)._asdict() for name, v in by_pool.items()}
    report["accuracy"] = {name: curves.level(v)._asdict() for name, v in by_pool.items()}
    report["repeated_rows"] = repeated(batches["unseen"])
    report["baselines"] = {}
    for name in (n for n in batches if n != "seen"):
        by_position, fitted = baselines(batches[name])
        report["baselines"][name] = {
            "curves": {k: curves.curve(v) for k, v in by_position.items()},
            "accuracy": {k: curves.level(v)._asdict() for k, v in by_position.items()}
            | {k: curves.level(v[:, None])._asdict() for k, v in fitted.items()},
        }
    return Examined(by_pool, unseen.chance, report)


def repeated(batch: Tensors) -> float:
    """The share of rows that repeat an earlier row of their sequence: mere lookup gets those right."""
    x = batch["x"]
    equal = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") == 0
    return float(equal.tril(-1).any(-1).float().mean())


class Plateau(loop.Hook):
    """Records in `left` the first step at which fresh tasks improve within a sequence: the end of the loss plateau."""

    def __init__(self, unseen: TaskPool, seed: int, steps: int, count: int = 128) -> None:
        self.batch, self.every = unseen((seed, 0, WATCHED), count), max(1, steps // LOOKS)
        self.left: int | None = None

    def after(self, step: loop.Step) -> None:
        """Check every `every` steps until the plateau has ended."""
        look = self.left is None and (step.step + 1) % self.every == 0
        if look and curves.improvement(hits(step.module, self.batch)).low > curves.ENOUGH:
            self.left = step.step + 1

    def state(self) -> Any:
        """The step at which the plateau ended, for a checkpoint."""
        return self.left

    def restore(self, state: Any) -> None:
        """Restore the step from a checkpoint."""
        self.left = state
