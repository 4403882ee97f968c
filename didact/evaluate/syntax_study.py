"""Syntax probes at every layer of a model and its untrained copy, with the control task: numbers and figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from didact import figures
from didact.data import trees
from didact.data.trees import Code, Leaf, Node
from didact.evaluate import probes, statistics, syntax, syntax_scores
from didact.evaluate.syntax import Corpus, Labels, Snippet
from didact.models import hidden
from didact.models.model import Model
from didact.models.subspace import Subspace

Scores = dict[str, NDArray[np.float64]]
CONTROLS = 4  # draws of the control task


@dataclass(frozen=True)
class Reading:
    """One probe: its validation F1, its predicted trees of the test texts, and their scores per text."""

    probe: Subspace
    valid: float
    predicted: list[Code]
    test: Scores


@dataclass(frozen=True)
class Study:
    """The texts, their split, and how probes are trained."""

    snippets: Sequence[Snippet]
    parts: probes.Parts
    rank: int
    how: probes.Training
    loss: syntax.Loss = "rank"
    penalty: float = 5.0
    seed: int = 0

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The true trees, with the labels of the training texts."""
        return self._corpus([s.code for s in self.snippets])

    @functools.cached_property
    def controls(self) -> dict[str, tuple[Corpus, int]]:
        """The control task's trees, drawn several times: F1 depends on the draw."""
        codes, words = [s.code for s in self.snippets], [s.words for s in self.snippets]
        drawn = (trees.control(codes, words, self.seed + 1_000 * n) for n in range(CONTROLS))
        return {f"control {n}": (self._corpus(control), self.rank) for n, control in enumerate(drawn)}

    @functools.cached_property
    def true(self) -> list[Code]:
        """The true codes of the test texts."""
        return [self.corpus.codes[i] for i in self.parts.test.tolist()]

    def store(self, model: Model, layers: Sequence[int] = ()) -> hidden.Store:
        """The hidden states of every leaf."""
        rows, units = [s.ids for s in self.snippets], [s.units for s in self.snippets]
        return hidden.record(model, rows, units, layers or None)

    def probe(self, store: hidden.Store, layer: int, tasks: Mapping[str, tuple[Corpus, int]]) -> dict[str, Reading]:
        """Train these probes on one layer and read trees off it."""

        def read(index: torch.Tensor) -> torch.Tensor:
            return store.take(index, layer)

        subspaces = syntax.train(read, tasks, self.parts, self.how, self.loss, self.penalty, self.seed)
        out = {}
        for name, probe in subspaces.items():
            corpus = tasks[name][0]
            valid, test = (syntax.predict(probe, corpus, read, part) for part in self.parts[1:])
            valid_scores, test_scores = (
                syntax_scores.table(codes, [corpus.codes[i] for i in part.tolist()])
                for codes, part in ((valid, self.parts.valid), (test, self.parts.test))
            )
            out[name] = Reading(probe, float(valid_scores["f1"].mean()), test, test_scores)
        return out

    def _corpus(self, codes: Sequence[Code]) -> Corpus:
        return syntax.Corpus(codes, Labels.of([codes[i] for i in self.parts.train.tolist()]))


def best(readings: Mapping[int, Reading]) -> int:
    """The layer or rank with the highest F1 on the validation texts, never on the test texts."""
    return max(readings, key=lambda key: readings[key].valid)


def mean(readings: Sequence[Reading]) -> Reading:
    """Several readings as one, with the mean of their scores per text."""
    scores = {name: np.mean([r.test[name] for r in readings], axis=0) for name in readings[0].test}
    return dataclasses.replace(readings[0], test=scores)


def summary(scores: Scores) -> dict[str, dict[str, float]]:
    """Means over texts with 95 % intervals."""
    return {name: statistics.mean_interval(values)._asdict() for name, values in scores.items()}


def gap(a: Reading, b: Reading) -> dict[str, float]:
    """How much higher an F1 is than another, paired by text."""
    return statistics.paired_interval(a.test["f1"], b.test["f1"])._asdict()


def curve(layers: Mapping[str, Mapping[int, Reading]]) -> figures.Figure:
    """F1 by layer, of every arm."""
    lines = []
    for name, readings in layers.items():
        intervals = [statistics.mean_interval(r.test["f1"]) for r in readings.values()]
        columns = ([f.estimate for f in intervals], [f.low for f in intervals], [f.high for f in intervals])
        lines.append(figures.Line(name, list(readings), *columns))
    return figures.Curves(
        title="Syntax trees read off hidden states", x="layer (0: embeddings)", y="F1 of constituents, mean over texts",
        lines=lines, note="Bands: 95 % intervals over test texts. What an untrained copy shows is due to the tokens.",
    )  # fmt: skip


def sweep(ranks: Mapping[int, Reading]) -> figures.Figure:
    """F1 by the dimensions of the subspace."""
    intervals = {rank: statistics.mean_interval(reading.test["f1"]) for rank, reading in sorted(ranks.items())}
    columns = zip(*intervals.values(), strict=True)
    line = figures.Line("trained", list(intervals), *map(list, columns))
    return figures.Curves(
        title="How many dimensions syntax takes", x="dimensions of the subspace", y="F1 of constituents", lines=[line],
        log=True,
    )  # fmt: skip


def example_trees(
    snippets: Sequence[Snippet], reading: Reading, true: Sequence[Code], max_leaves: int = 14
) -> figures.Figure | None:
    """The true and the predicted tree of the test text with median F1, among those with 5 to `max_leaves` leaves."""
    short = [i for i, s in enumerate(snippets) if 5 <= len(s.leaves) <= max_leaves]
    if not short:
        return None
    i = sorted(short, key=lambda i: float(reading.test["f1"][i]))[len(short) // 2]
    drawn = {
        name: _nested(trees.decode(code)) for name, code in (("true", true[i]), ("read off", reading.predicted[i]))
    }
    title = f"A tree read off hidden states (F1 {reading.test['f1'][i]:.2f})"
    return figures.Trees(title=title, words=snippets[i].words, trees=drawn, note="The test text with median F1.")


def _nested(tree: Node | Leaf) -> Any:
    return tree.start if isinstance(tree, Leaf) else (tree.label, [_nested(child) for child in tree.children])
