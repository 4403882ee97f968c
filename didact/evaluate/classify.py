"""A user's labelled rows around a meta-trained classifier: what is trained on, held out and new, and its predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from didact.data import reduction, words
from didact.evaluate import curves
from didact.evaluate.in_context import Examined
from didact.learn import task_pools
from didact.learn.task_pools import Labelled, TaskPool
from didact.models.sequence import SequenceLearner
from didact.types import Example, Metric, UserError

Reading = Callable[[Sequence[str]], NDArray[np.float64]]
DRAWS = 8  # random maps and places a prediction is the mean of


@dataclass(frozen=True)
class Data:
    """Base data to train on, their rows held out, new sets, all reduced; and how rows are."""

    train: Sequence[Labelled]
    held: Sequence[Labelled]
    new: Sequence[Labelled]
    reduction: reduction.Reduction

    @property
    def width(self) -> int:
        """d."""
        return int(self.reduction.basis.shape[1])

    def pools(self, pool: TaskPool) -> dict[str, TaskPool]:
        """What is examined: `seen` and `unseen` tasks on held-out rows, every new set, and each as it is, unmapped."""
        fresh = pool.but(data=self.held, tasks=0, seed=pool.seed + 1)
        out = {"seen": pool.but(data=self.held), "unseen": fresh}
        for one in self.new:
            out[f"new: {one.name}"] = fresh.but(data=[one])
            out[f"new: {one.name}, unmapped"] = fresh.but(data=[one], natural=1.0)
        return out


def prepared(
    datasets: Sequence[Example], new: Sequence[Example], reading: Reading | None, held_out: float, features: int
) -> Data:
    """Read, split and reduce. The reduction is fitted to the rows that are trained on, and to no others.

    Raises:
        UserError: as `task_pools.labelled` and `Labelled.split`; or new rows of another length.
    """
    base = task_pools.labelled(datasets, reading)
    others = task_pools.labelled(new, reading, "new") if new else []
    if others and (wide := others[0].x.shape[1]) != base[0].x.shape[1]:
        raise UserError(f"new: rows of {wide} numbers; those of datasets have {base[0].x.shape[1]}")
    split = [one.split(held_out) for one in base]
    texts = isinstance(datasets[0].x[0], str)
    how = reduction.fitted(np.concatenate([train.x for train, _ in split]), features, whiten=texts)
    train, held, fresh = (
        [one.mapped(how) for one in sets] for sets in ([s[0] for s in split], [s[1] for s in split], others)
    )
    return Data(train, held, fresh, how)


class Prediction(NamedTuple):
    """The likeliest class of each query, and the probability of every class that the context shows, in `classes`."""

    labels: list[Any]
    probabilities: NDArray[np.float64]
    classes: list[Any]


def predictor(
    module: SequenceLearner, reading: Reading | None, length: int, seed: int = 0
) -> Callable[..., Prediction]:
    """`(x (N, d), y (N,), query (M, d)) -> Prediction`: raw rows or texts in, the user's own classes out.

    The mean over several random maps and places, as in training; and a query never sees another.
    """

    def predict(x: Any, y: Sequence[Any], query: Any) -> Prediction:
        rows, asked = (
            np.asarray(reading(list(v)) if reading and isinstance(v[0], str) else v, float) for v in (x, query)
        )
        y = [*map(words.label, y)]
        classes = sorted(set(y), key=lambda c: (str(type(c)), c))
        slots, shown, width = module.outputs, len(rows), module.inputs
        if len(classes) > slots or shown + 1 > length:
            raise UserError(
                f"{shown} rows of {len(classes)} classes: this learner has {slots} slots and takes {length - 1} rows"
            )
        number = torch.tensor([classes.index(c) for c in y])
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(asked), len(classes))
        sequences = torch.from_numpy(
            np.concatenate([np.repeat(rows[None], len(asked), 0), asked[:, None]], 1).astype(np.float32)
        )
        sequences = (sequences - module.mean) @ module.basis
        with torch.no_grad():
            for draw in range(DRAWS):
                places = torch.randperm(slots, generator=generator)[: len(classes)]
                a = torch.randn(width, width, generator=generator) / width**0.5 if draw else torch.eye(width)
                shown_y = torch.nn.functional.one_hot(places[number], slots).float()
                known = torch.cat([shown_y, torch.zeros(1, slots)]).expand(len(asked), -1, -1)
                logits = module.inner(sequences @ a, known)[:, -1, places]
                total += logits.softmax(-1) / DRAWS
        return Prediction([classes[i] for i in total.argmax(1)], total.double().numpy(), classes)

    return predict


def metrics(found: Examined, sequences: int) -> tuple[dict[str, Metric], list[str]]:
    """Accuracy with many examples and improvement within a sequence, on fresh tasks and on new data sets."""
    out: dict[str, Metric] = {}
    idle = curves.level(found.hits["untrained"]).estimate
    for name in ("unseen", *(n for n in found.hits if n.startswith("new: "))):
        level, gain = curves.level(found.hits[name]), curves.improvement(found.hits[name])
        on = "fresh tasks" if name == "unseen" else name
        out[f"accuracy, {on}"] = Metric(
            after=level.estimate, before=idle if name == "unseen" else None, n=sequences, ci=(level.low, level.high),
            better="higher", help="of the last quarter of the rows of a sequence; before: untrained",
        )  # fmt: skip
        out[f"improvement, {on}"] = Metric(
            after=gain.estimate, n=sequences, ci=(gain.low, gain.high), better="higher",
            help="accuracy of the last quarter minus that of the first row",
        )  # fmt: skip
    told = []
    if found.regime != "learning to learn":
        told.append(
            f"{found.regime}: no improvement within sequences of fresh tasks; train longer (the plateau may not be "
            "over), on more tasks, with larger rows or more bias"
        )
    if (repeated := found.findings["repeated_rows"]) > 0.1:
        told.append(f"{repeated:.0%} of held-out rows stood in their sequence before: bring more, or a shorter length")
    return out, told
