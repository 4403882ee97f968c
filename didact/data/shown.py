"""Which pairs of a mined pool are shown for a sentence: by likeness, then vectors, then words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from didact.bounds import Count, Whole
from didact.data import retrieval, segments

How = Literal["topk-bm25", "topk", "bm25", "random"]
FilterOn = Literal["pair", "query"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Which demonstrations a sentence gets.

    Args:
        shots: how many.
        near: of the pairs that pass, so many whose sources are nearest to the sentence are ranked by BM25.
        tau: pairs below this likeness are left out; `q0.5` is the median. -1 leaves out none.
        on: what tau is compared with: how alike the two sides of a pair are, or the sentence and the pair's source.
        how: topk-bm25; topk (nearest alone), bm25 (of all that pass), or random.
    """

    shots: Whole = 8
    near: Count = 20
    tau: str = "0.9"
    on: FilterOn = "pair"
    how: How = "topk-bm25"


@dataclass(frozen=True)
class Picked:
    """Places in the pool for every sentence, the most relevant LAST; and for how many too few pairs passed, so that
    the likest were taken all the same."""

    places: list[list[int]]
    fell_back: int


def pick(
    queries: Sequence[str], sources: Sequence[str], alike: Sequence[float], near: Floats, how: Pick, seed: int = 0
) -> Picked:
    """Choose for every query.

    Args:
        queries: the sentences.
        sources: of the pool's pairs.
        alike: the two sides of every pair `(pool,)`.
        near: queries and sources `(queries, pool)`.
        how: see `Pick`.
        seed: of random picks.
    """
    size, few = len(sources), 0
    pairs = np.asarray(alike, dtype=float)
    words = retrieval.BM25(sources).scores(queries) if how.how in ("topk-bm25", "bm25") else near
    out = []
    for q in range(len(queries)):
        by = pairs if how.on == "pair" else near[q]
        passed = np.flatnonzero(by >= segments.threshold(how.tau, by.tolist())) if size else np.zeros(0, dtype=int)
        if len(passed) < min(how.shots, size):
            few += 1
            passed = np.sort(np.argsort(-by, kind="stable")[: how.shots])
        if how.how == "random":
            chosen = np.random.default_rng([seed, q, 2410]).permutation(passed)[: how.shots]
        else:
            some = _first(passed, near[q], how.near) if how.how == "topk-bm25" else passed
            chosen = _first(some, (near if how.how == "topk" else words)[q], how.shots)
        out.append([int(i) for i in chosen[::-1]])
    return Picked(out, few)


def _first(places: NDArray[np.int64], scores: Floats, k: int) -> NDArray[np.int64]:
    """The k places of highest score, best first; equals in the pool's order."""
    at = np.sort(places)
    return at[np.argsort(-scores[at], kind="stable")][:k]
