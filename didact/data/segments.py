"""Documents as scored segments, higher is better: scoring, thresholds, marking with control tokens. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from didact.data import spans
from didact.types import Text, UserError

Document = list[tuple[str, float]]  # its segments with their scores
Split = Literal["sentences", "lines"]
CUTS = {"sentences": spans.sentences, "lines": spans.lines}


def scored(
    texts: Sequence[Text], score: Callable[[Sequence[str]], Sequence[float]] | None, split: Split
) -> list[Document]:
    """Documents as scored segments: by the scorer, for which texts without segments are split, else their own scores.

    Raises:
        UserError: no text; a document has neither segments nor a score, and there is no scorer.
    """
    texts = [t for t in texts if t.text]
    if not texts:
        raise UserError("texts: no text")
    if score is not None:
        parts = [[s.text for s in t.segments] if t.segments else CUTS[split](t.text) for t in texts]
        scores = iter(score([part for group in parts for part in group]))
        return [[(part, next(scores)) for part in group] for group in parts]
    for number, t in enumerate(texts, 1):
        if not t.segments and t.score is None:
            raise UserError(
                f"texts: record {number} has neither 'segments' nor 'score': give a scorer, module:function"
            )
    return [[(s.text, s.score) for s in t.segments] if t.segments else [(t.text, float(t.score or 0))] for t in texts]


def mean(document: Document) -> float:
    """Mean score of a document's segments."""
    return sum(value for _, value in document) / len(document)


def threshold(value: str | float, values: Sequence[float]) -> float:
    """Parse a threshold: a number, or a quantile of `values`, where `q0.5` is the median.

    Raises:
        UserError: it is neither.
    """
    text = str(value)
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        number = float("nan")
    if number != number or (text.startswith("q") and not 0 <= number <= 1):
        raise UserError(f"threshold '{text}': a number or a quantile, q0 to q1, is expected")
    return float(np.quantile(values, number)) if text.startswith("q") else number


def marked(documents: Sequence[Document], limit: float, marks: Sequence[str], drop: float, seed: int) -> list[Document]:
    """Put the control token of its score before every segment, except for a share `drop` of them."""
    draw = np.random.default_rng([seed, 143])
    out = []
    for document in documents:
        row: Document = []
        for (text, value), u in zip(document, draw.random(len(document)), strict=True):
            row += [(mark_of(value, limit, marks), value), (text, value)] if u >= drop else [(text, value)]
        out.append(row)
    return out


def mark_of(value: float, limit: float, marks: Sequence[str]) -> str:
    """The control token of a score; a score at the threshold counts as aligned."""
    return marks[0] if value >= limit else marks[1]


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The documents in random order."""
    order = np.random.default_rng([seed, 144]).permutation(len(documents))
    return [documents[i] for i in order]
