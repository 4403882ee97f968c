"""A meta-trained classifier on a user's labelled rows: training, held-out and new data, metrics and the predictor."""

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
DRAWS = 8  # random maps and label slots that a prediction is averaged over


@dataclass(frozen=True)
class Data:
    """Training rows, held-out rows of the same data sets and new data sets, all reduced by `reduction`."""

    train: Sequence[Labelled]
    held: Sequence[Labelled]
    new: Sequence[Labelled]
    reduction: reduction.Reduction

    @property
    def width(self) -> int:
        """Features of a reduced row, d."""
        return int(self.reduction.basis.shape[1])

    def pools(self, pool: TaskPool) -> dict[str, TaskPool]:
        """The pools to evaluate on: `seen` and `unseen` tasks of held-out rows; every new set, mapped and unmapped."""
        fresh = pool.but(data=self.held, tasks=0, seed=pool.seed + 1)
        out = {"seen": pool.but(data=self.held), "unseen": fresh}
        for dataset in self.new:
            out[f"new: {dataset.name}"] = fresh.but(data=[dataset])
            out[f"new: {dataset.name}, unmapped"] = fresh.but(data=[dataset], natural=1.0)
        return out


def prepared(
    datasets: Sequence[Example], new: Sequence[Example], reading: Reading | None, held_out: float, features: int
) -> Data:
    """Read, split and reduce the data sets. The reduction is fitted to the training rows only.

    Raises:
        UserError: see `task_pools.labelled` and `Labelled.split`; or new rows of another length.
    """
    base = task_pools.labelled(datasets, reading)
    new_sets = task_pools.labelled(new, reading, "new") if new else []
    if new_sets and (columns := new_sets[0].x.shape[1]) != base[0].x.shape[1]:
        raise UserError(f"new: rows have {columns} features, those of datasets have {base[0].x.shape[1]}")
    split = [dataset.split(held_out) for dataset in base]
    texts = isinstance(datasets[0].x[0], str)
    fitted = reduction.fitted(np.concatenate([train.x for train, _ in split]), features, whiten=texts)
    train, held, fresh = (
        [dataset.mapped(fitted) for dataset in sets]
        for sets in ([s[0] for s in split], [s[1] for s in split], new_sets)
    )
    return Data(train, held, fresh, fitted)


class Prediction(NamedTuple):
    """The likeliest class of each query, and the probability `(M, C)` of every class in the context, in `classes`."""

    labels: list[Any]
    probabilities: NDArray[np.float64]
    classes: list[Any]


def predictor(
    module: SequenceLearner, reading: Reading | None, length: int, seed: int = 0
) -> Callable[..., Prediction]:
    """`(x (N, d), y (N,), query (M, d)) -> Prediction`: raw rows or texts in, the user's own classes out.

    Averages over several random maps and label slots, as in training. Queries do not see each other.
    """

    def predict(x: Any, y: Sequence[Any], query: Any) -> Prediction:
        rows, queries = (
            np.asarray(reading(list(v)) if reading and isinstance(v[0], str) else v, float) for v in (x, query)
        )
        y = [*map(words.label, y)]
        classes = sorted(set(y), key=lambda c: (str(type(c)), c))
        slots, n, width = module.outputs, len(rows), module.inputs
        if len(classes) > slots or n + 1 > length:
            raise UserError(
                f"{n} rows of {len(classes)} classes: this learner has {slots} slots and takes {length - 1} rows"
            )
        index = torch.tensor([classes.index(c) for c in y])
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(queries), len(classes))
        sequences = torch.from_numpy(
            np.concatenate([np.repeat(rows[None], len(queries), 0), queries[:, None]], 1).astype(np.float32)
        )
        sequences = (sequences - module.mean) @ module.basis
        with torch.no_grad():
            for draw in range(DRAWS):
                places = torch.randperm(slots, generator=generator)[: len(classes)]
                a = torch.randn(width, width, generator=generator) / width**0.5 if draw else torch.eye(width)
                one_hot = torch.nn.functional.one_hot(places[index], slots).float()
                labels = torch.cat([one_hot, torch.zeros(1, slots)]).expand(len(queries), -1, -1)
                logits = module.inner(sequences @ a, labels)[:, -1, places]
                total += logits.softmax(-1) / DRAWS
        return Prediction([classes[i] for i in total.argmax(1)], total.double().numpy(), classes)

    return predict


def metrics(examined: Examined, sequences: int) -> tuple[dict[str, Metric], list[str]]:
    """Accuracy with many examples and improvement within a sequence, on fresh tasks and on new data sets."""
    out: dict[str, Metric] = {}
    idle = curves.level(examined.hits["untrained"]).estimate
    for name in ("unseen", *(n for n in examined.hits if n.startswith("new: "))):
        level, gain = curves.level(examined.hits[name]), curves.improvement(examined.hits[name])
        label = "fresh tasks" if name == "unseen" else name
        out[f"accuracy, {label}"] = Metric(
            after=level.estimate, before=idle if name == "unseen" else None, n=sequences, ci=(level.low, level.high),
            better="higher", help="of the last quarter of the rows of a sequence; before: untrained",
        )  # fmt: skip
        out[f"improvement, {label}"] = Metric(
            after=gain.estimate, n=sequences, ci=(gain.low, gain.high), better="higher",
            help="accuracy of the last quarter minus that of the first row",
        )  # fmt: skip
    warnings = []
    if examined.regime != "learning to learn":
        warnings.append(
            f"{examined.regime}: no improvement within sequences of fresh tasks; train longer (the plateau may not be "
            "over), on more tasks, with larger rows or more bias"
        )
    if (repeated := examined.findings["repeated_rows"]) > 0.1:
        warnings.append(f"{repeated:.0%} of held-out rows are repeats within their sequence: add rows or reduce length")
    return out, warnings
