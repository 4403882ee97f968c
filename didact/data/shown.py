"""Choose demonstrations for a sentence from a mined pool: by similarity threshold, then embedding, then BM25."""

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
    """How the demonstrations of a sentence are chosen.

    Args:
        shots: number of demonstrations.
        near: of the pairs that pass tau, the number nearest to the sentence by embedding, which BM25 ranks.
        tau: pairs below this similarity are left out; `q0.5` is the median. -1 leaves out none.
        on: the similarity compared with tau: of the two sides of a pair, or of the sentence and the pair's source.
        how: topk-bm25; topk (by embedding alone), bm25 (of all that pass), or random.
    """

    shots: Whole = 8
    near: Count = 20
    tau: str = "0.9"
    on: FilterOn = "pair"
    how: How = "topk-bm25"


@dataclass(frozen=True)
class Picked:
    """Indices into the pool for every sentence, the most relevant LAST; and the number of sentences for which too few
    pairs passed tau, so that the most similar ones were taken instead."""

    places: list[list[int]]
    fell_back: int


def pick(
    queries: Sequence[str], sources: Sequence[str], alike: Sequence[float], near: Floats, how: Pick, seed: int = 0
) -> Picked:
    """Choose demonstrations for every query.

    Args:
        queries: the sentences.
        sources: source sides of the pool's pairs.
        alike: similarity of the two sides of every pair `(pool,)`.
        near: similarity of queries and sources `(queries, pool)`.
        how: see `Pick`.
        seed: seed of random picks.
    """
    size, fell_back = len(sources), 0
    pairs = np.asarray(alike, dtype=float)
    lexical = retrieval.BM25(sources).scores(queries) if how.how in ("topk-bm25", "bm25") else near
    out = []
    for q in range(len(queries)):
        sim = pairs if how.on == "pair" else near[q]
        passed = np.flatnonzero(sim >= segments.threshold(how.tau, sim.tolist())) if size else np.zeros(0, dtype=int)
        if len(passed) < min(how.shots, size):
            fell_back += 1
            passed = np.sort(np.argsort(-sim, kind="stable")[: how.shots])
        if how.how == "random":
            chosen = np.random.default_rng([seed, q, 2410]).permutation(passed)[: how.shots]
        else:
            nearest = _first(passed, near[q], how.near) if how.how == "topk-bm25" else passed
            chosen = _first(nearest, (near if how.how == "topk" else lexical)[q], how.shots)
        out.append([int(i) for i in chosen[::-1]])
    return Picked(out, fell_back)


def _first(places: NDArray[np.int64], scores: Floats, k: int) -> NDArray[np.int64]:
    """The k places of highest score, best first; ties keep the pool's order."""
    at = np.sort(places)
    return at[np.argsort(-scores[at], kind="stable")][:k]
