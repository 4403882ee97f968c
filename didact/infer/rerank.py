"""Which answer to trust, when each was drawn beside one of several passages: four rules over their log-probs. Pure.

    direct         log p(a | q, p)
    rag            log sum_p p(p | q) p(a | q, p)
    noisy-channel  log p(q | a, p) + log p(a | p) - log p(q | p)
    poe            l1 log p(a | q, p) + l2 log p(q | a, p) + l3 log p(a | p) + l4 log p(p | q)

Where one joint p(q, a | p) is behind all of them, noisy-channel is direct.

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
GRID = (0.0, 0.5, 1.0)  # of weights that are tuned


@dataclass(frozen=True)
class Table:
    """What is known of the answers of one question, A of them, and of its P passages, the best found first.

    `prior` is log p(p | q) `(P,)`, `ask` log p(q | p) `(P,)`; `answer`, `question` and `plain` are log p(a | q, p),
    log p(q | a, p) and log p(a | p) `(A, P)`, -inf where a pair was not scored. An expert that nobody asked is None.
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
    """log p(p | q): cosines over their sum; all alike where no passage shares a word with the question."""
    values = np.asarray(cosines, dtype=np.float64)
    total = values.sum()
    if total <= 0:
        return np.full(len(values), -np.log(max(len(values), 1)))
    with np.errstate(divide="ignore"):
        return np.log(values / total)


def direct(table: Table) -> Floats:
    """`(A, P)`."""
    return table.answer


def rag(table: Table) -> Floats:
    """What each passage adds to the sum, as logs `(A, P)`."""
    return table.answer + table.prior


def noisy_channel(table: Table) -> Floats | None:
    """`(A, P)`; None where an expert is missing."""
    if table.question is None or table.plain is None or table.ask is None:
        return None
    return _where(table, table.question + table.plain - table.ask)


def poe(table: Table, weights: Sequence[float] = (1, 1, 1, 1)) -> Floats:
    """`(A, P)`; experts that are missing are left out."""
    experts = (table.answer, table.question, table.plain, np.broadcast_to(table.prior, table.answer.shape))
    some = [w * e for w, e in zip(weights, experts, strict=True) if e is not None and w]
    return _where(table, np.sum(some, axis=0) if some else np.zeros_like(table.answer))


def best(table: Table, rule: Rule, weights: Sequence[float] = (1, 1, 1, 1)) -> Best | None:
    """What a rule chooses; of equals that with the better passage. None where it lacks an expert, or an answer."""
    pairs = {
        "direct": lambda: direct(table), "rag": lambda: rag(table), "noisy-channel": lambda: noisy_channel(table),
        "poe": lambda: poe(table, weights),
    }[rule]()  # fmt: skip
    if pairs is None or not pairs.size:
        return None
    scores = logsumexp(pairs, axis=1) if rule == "rag" else pairs.max(1)
    where = pairs.argmax(1)
    chosen = min(range(len(scores)), key=lambda a: (-scores[a], where[a], a))
    return Best(chosen, int(where[chosen]), scores)


def tuned(tables: Sequence[Table], right: Sequence[Sequence[bool]]) -> tuple[float, float, float, float]:
    """The weights of `poe` on a grid that choose a right answer most often, the most even ones among equals.

    Args:
        tables: of the questions to tune on.
        right: of each question, which of its answers are right.
    """

    def good(weights: Sequence[float]) -> int:
        return sum(
            bool(found and r[found.answer])
            for t, r in zip(tables, right, strict=True)
            if (found := best(t, "poe", weights)) is not None
        )

    even = sorted(product(GRID, repeat=4), key=lambda w: (-min(w), -sum(w)))
    a, b, c, d = max((w for w in even if any(w)), key=good)
    return a, b, c, d


def _where(table: Table, scores: Floats) -> Floats:
    """Scores of the pairs that were scored."""
    return np.where(np.isneginf(table.answer), -np.inf, scores)
