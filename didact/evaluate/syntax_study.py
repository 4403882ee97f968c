"""Trees probed at every layer of a model, of its untrained copy, and for the control task: numbers, and pictures."""

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
    """One probe and what it reads: its validation F1, its trees of the test texts, and their scores a text."""

    probe: Subspace
    valid: float
    predicted: list[Code]
    test: Scores


@dataclass(frozen=True)
class Study:
    """The texts, which serve for what, and how probes are trained."""

    snippets: Sequence[Snippet]
    parts: probes.Parts
    rank: int
    how: probes.Training
    loss: syntax.Loss = "rank"
    penalty: float = 5.0
    seed: int = 0

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The true trees, with the labels of those that are trained on."""
        return self._known([s.code for s in self.snippets])

    @functools.cached_property
    def controls(self) -> dict[str, tuple[Corpus, int]]:
        """The control task's trees, drawn several times: how high F1 is depends on the draw."""
        codes, words = [s.code for s in self.snippets], [s.words for s in self.snippets]
        drawn = (trees.control(codes, words, self.seed + 1_000 * n) for n in range(CONTROLS))
        return {f"control {n}": (self._known(made), self.rank) for n, made in enumerate(drawn)}

    @functools.cached_property
    def true(self) -> list[Code]:
        """Of the test texts."""
        return [self.corpus.codes[i] for i in self.parts.test.tolist()]

    def store(self, model: Model, layers: Sequence[int] = ()) -> hidden.Store:
        """The hidden states of every leaf."""
        rows, units = [s.ids for s in self.snippets], [s.units for s in self.snippets]
        return hidden.record(model, rows, units, layers or None)

    def probe(self, store: hidden.Store, layer: int, tasks: Mapping[str, tuple[Corpus, int]]) -> dict[str, Reading]:
        """Train these probes on one layer and read trees off it."""

        def read(index: torch.Tensor) -> torch.Tensor:
            return store.take(index, layer)

        made = syntax.train(read, tasks, self.parts, self.how, self.loss, self.penalty, self.seed)
        out = {}
        for name, probe in made.items():
            corpus = tasks[name][0]
            valid, test = (syntax.predict(probe, corpus, read, part) for part in self.parts[1:])
            chosen, scored = (
                syntax_scores.table(said, [corpus.codes[i] for i in part.tolist()])
                for said, part in ((valid, self.parts.valid), (test, self.parts.test))
            )
            out[name] = Reading(probe, float(chosen["f1"].mean()), test, scored)
        return out

    def _known(self, codes: Sequence[Code]) -> Corpus:
        return syntax.Corpus(codes, Labels.of([codes[i] for i in self.parts.train.tolist()]))


def best(readings: Mapping[int, Reading]) -> int:
    """The layer or rank of the highest F1 on the texts that training chose on, never on the test texts."""
    return max(readings, key=lambda key: readings[key].valid)


def mean(readings: Sequence[Reading]) -> Reading:
    """Several as one, with the mean of their scores of each text."""
    scores = {name: np.mean([r.test[name] for r in readings], axis=0) for name in readings[0].test}
    return dataclasses.replace(readings[0], test=scores)


def told(scores: Scores) -> dict[str, dict[str, float]]:
    """Means over texts with 95 % intervals."""
    return {name: statistics.mean_interval(values)._asdict() for name, values in scores.items()}


def gap(ours: Reading, theirs: Reading) -> dict[str, float]:
    """How much higher an F1 is than another, paired by text."""
    return statistics.paired_interval(ours.test["f1"], theirs.test["f1"])._asdict()


def curve(layers: Mapping[str, Mapping[int, Reading]]) -> figures.Figure:
    """F1 by layer, of every arm."""
    lines = []
    for name, readings in layers.items():
        found = [statistics.mean_interval(r.test["f1"]) for r in readings.values()]
        ends = ([f.estimate for f in found], [f.low for f in found], [f.high for f in found])
        lines.append(figures.Line(name, list(readings), *ends))
    return figures.Curves(
        title="Syntax trees read off hidden states", x="layer (0: embeddings)", y="F1 of constituents, mean over texts",
        lines=lines, note="Bands: 95 % intervals over test texts. What an untrained copy shows is due to the tokens.",
    )  # fmt: skip


def sweep(ranks: Mapping[int, Reading]) -> figures.Figure:
    """F1 by the dimensions of the subspace."""
    found = {rank: statistics.mean_interval(reading.test["f1"]) for rank, reading in sorted(ranks.items())}
    columns = zip(*found.values(), strict=True)
    line = figures.Line("trained", list(found), *map(list, columns))
    return figures.Curves(
        title="How many dimensions syntax takes", x="dimensions of the subspace", y="F1 of constituents", lines=[line],
        log=True,
    )  # fmt: skip


def shown(snippets: Sequence[Snippet], reading: Reading, true: Sequence[Code], most: int = 14) -> figures.Figure | None:
    """A true tree and the one read off, of the test text of middling F1 among those short enough to be seen whole."""
    short = [i for i, s in enumerate(snippets) if 5 <= len(s.leaves) <= most]
    if not short:
        return None
    i = sorted(short, key=lambda i: float(reading.test["f1"][i]))[len(short) // 2]
    drawn = {name: _drawn(trees.decode(code)) for name, code in (("true", true[i]), ("read off", reading.predicted[i]))}
    title = f"A tree read off hidden states (F1 {reading.test['f1'][i]:.2f})"
    return figures.Trees(title=title, words=snippets[i].words, trees=drawn, note="The test text of middling F1.")


def _drawn(tree: Node | Leaf) -> Any:
    return tree.start if isinstance(tree, Leaf) else (tree.label, [_drawn(child) for child in tree.children])
