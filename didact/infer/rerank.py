"""Choose among answers drawn with different passages in the prompt: four rules over their log-probs. Pure functions.

    direct         log p(a | q, p)
    rag            log sum_p p(p | q) p(a | q, p)
    noisy-channel  log p(q | a, p) + log p(a | p) - log p(q | p)
    poe            l1 log p(a | q, p) + l2 log p(q | a, p) + l3 log p(a | p) + l4 log p(p | q)

Where all factors come from one joint p(q, a | p), noisy-channel equals direct.

Source: Lazaridou et al. 2022, arXiv:2203.05115.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Rule = Literal["direct", "rag", "noisy-channel", "poe"]
RULES: tuple[Rule, ...] = ("direct", "rag", "noisy-channel", "poe")
GRID = (0.0, 0.5, 1.0)  # values of each weight in tuning


@dataclass(frozen=True)
class Table:
    """Log-probs of one question's A answers and P passages, the best retrieved passage first.

    `prior` is log p(p | q) `(P,)`, `ask` log p(q | p) `(P,)`; `answer`, `question` and `plain` are log p(a | q, p),
    log p(q | a, p) and log p(a | p) `(A, P)`, -inf where a pair was not scored. An expert that was not used is None.
    """

    prior: Floats
    answer: Floats
    question: Floats | None = None
    plain: Floats | None = None
    ask: Floats | None = None


class Best(NamedTuple):
    """The answer chosen, the passage it rests on, and the score of every answer `(A,)`."""

    answer: int
    passage: int
    scores: Floats


def prior(cosines: Sequence[float]) -> Floats:
    """log p(p | q): cosines over their sum; uniform where no passage shares a word with the question."""
    values = np.asarray(cosines, dtype=np.float64)
    total = values.sum()
    if total <= 0:
        return np.full(len(values), -np.log(max(len(values), 1)))
    with np.errstate(divide="ignore"):
        return np.log(values / total)


def direct(table: Table) -> Floats:
    """Scores of `direct`, `(A, P)`."""
    return table.answer


def rag(table: Table) -> Floats:
    """Log terms of `rag`'s sum over passages, `(A, P)`."""
    return table.answer + table.prior


def noisy_channel(table: Table) -> Floats | None:
    """Scores of `noisy-channel`, `(A, P)`; None where an expert is missing."""
    if table.question is None or table.plain is None or table.ask is None:
        return None
    return _masked(table, table.question + table.plain - table.ask)


def poe(table: Table, weights: Sequence[float] = (1, 1, 1, 1)) -> Floats:
    """Scores of `poe`, `(A, P)`; missing experts are left out."""
    experts = (table.answer, table.question, table.plain, np.broadcast_to(table.prior, table.answer.shape))
    terms = [w * e for w, e in zip(weights, experts, strict=True) if e is not None and w]
    return _masked(table, np.sum(terms, axis=0) if terms else np.zeros_like(table.answer))


def best(table: Table, rule: Rule, weights: Sequence[float] = (1, 1, 1, 1)) -> Best | None:
    """The answer a rule chooses; ties go to the better-ranked passage. None if an expert is missing or no answer is."""
    pairs = {
        "direct": lambda: direct(table), "rag": lambda: rag(table), "noisy-channel": lambda: noisy_channel(table),
        "poe": lambda: poe(table, weights),
    }[rule]()  # fmt: skip
    if pairs is None or not pairs.size:
        return None
    scores = logsumexp(pairs, axis=1) if rule == "rag" else pairs.max(1)
    passages = pairs.argmax(1)
    chosen = min(range(len(scores)), key=lambda a: (-scores[a], passages[a], a))
    return Best(chosen, int(passages[chosen]), scores)


def tuned(tables: Sequence[Table], right: Sequence[Sequence[bool]]) -> tuple[float, float, float, float]:
    """Grid-search the weights of `poe` that choose a right answer most often; ties go to the most even weights.

    Args:
        tables: the questions to tune on.
        right: for each question, which of its answers are right.
    """

    def n_right(weights: Sequence[float]) -> int:
        return sum(
            bool(choice and r[choice.answer])
            for t, r in zip(tables, right, strict=True)
            if (choice := best(t, "poe", weights)) is not None
        )

    grid = sorted(product(GRID, repeat=4), key=lambda w: (-min(w), -sum(w)))
    a, b, c, d = max((w for w in grid if any(w)), key=n_right)
    return a, b, c, d


def _masked(table: Table, scores: Floats) -> Floats:
    """Set the scores of pairs that were not scored to -inf."""
    return np.where(np.isneginf(table.answer), -np.inf, scores)
