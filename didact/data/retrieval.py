"""Which texts are nearest to a text: by cosine of vectors of any make, by BM25, or by characters that they share in a
row. Pure, without torch.

Scores are made some queries at a time, so that memory grows with the pool and not with its square. Equals come in the
pool's order. What a query must not find is told by id: a cosine of 1 may be another text, and one's own may be less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from didact.data import words
from didact.types import UserError

Vectors: TypeAlias = Any
"""`(n, d)`, one row a text: a numpy array or a scipy sparse one."""
Embedder = Callable[[Sequence[str]], Vectors]
"""Texts as vectors."""
Overflow = Literal["stop", "skip"]
CHUNK = 1 << 24  # scores in memory at a time
NOTHING = "nothing"  # a vocabulary for texts without words
BETWEEN = -2  # no character
NONE = -1  # where a pool has no further text


class Hits(NamedTuple):
    """The k best of every query, best first: positions in the pool `(m, k)` and their scores.

    Where fewer than k may be found, `positions` end in -1 and `scores` in -inf.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.floating[Any]]

    def lists(self) -> list[list[int]]:
        """The positions found, a list a query."""
        return [[int(i) for i in row if i != NONE] for row in self.positions]


def terms(text: str) -> list[str]:
    """What TF-IDF and BM25 count: words in any script, case aside."""
    return [word.casefold() for word in words.words(text)]


class TfIdf:
    """An embedder: counts of the words of `texts`, each times `1 + ln((1 + N) / (1 + n))`, in rows of length 1.

    Words that stand in none of the texts it was made of count for nothing; a text of these alone is a row of zeros.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.made = TfidfVectorizer(analyzer=terms)
        self.made.fit(texts if any(map(terms, texts)) else [NOTHING])

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """A sparse row a text."""
        return self.made.transform(texts) if texts else sparse.csr_array((0, len(self.made.vocabulary_)))


class Scorer:
    """What scores every text of a pool for every query, and so finds the best; `size` is how many texts there are."""

    size: int

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """`(queries, texts)`, higher is nearer."""
        raise NotImplementedError  # BM25 and Substrings say how

    def nearest(
        self,
        queries: Sequence[str],
        k: int,
        query_ids: Sequence[Hashable] | None = None,
        pool_ids: Sequence[Hashable] | None = None,
    ) -> Hits:
        """The k nearest texts for every query; see `nearest`."""
        return _best(lambda at: self.scores(queries[at]), len(queries), self.size, k, query_ids, pool_ids)


class BM25(Scorer):
    """Okapi's BM25 over `texts`, the sum over the query's words t (twice where it has one twice) of

        idf(t) f (k1 + 1) / (f + k1 (1 - b + b L / mean L)),    idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5))

    f times t in the text, L its words, n of N texts with t. This idf (Lucene's) is never negative.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self.made = CountVectorizer(analyzer=terms)
        some = texts if any(map(terms, texts)) else [*texts, NOTHING]
        counts = sparse.csr_array(self.made.fit_transform(some)[: len(texts)].astype(np.float64))
        length = np.asarray(counts.sum(1)).ravel()
        holding = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log1p((len(texts) - holding + 0.5) / (holding + 0.5))
        norm = k1 * (1 - b + b * length / (length.mean() or 1.0 if len(texts) else 1.0))
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + norm[rows])
        self.weights, self.size = counts, len(texts)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """`(queries, texts)`."""
        if not queries:
            return np.zeros((0, self.size))
        return np.asarray((sparse.csr_array(self.made.transform(queries)) @ self.weights.T).todense())


class Substrings(Scorer):
    """Nearest by the longest common substring: characters in a row that two texts share, a space put on both sides of
    each, so that a whole word is nearer than the same letters inside another one."""

    def __init__(self, texts: Sequence[str]) -> None:
        codes = [_codes(text) for text in texts]
        self.size = len(codes)
        # All texts in one row with a mark before each, which no text has: a run never goes on into the next one.
        self.row = np.concatenate([np.concatenate([[BETWEEN], c]) for c in codes] or [np.zeros(0, np.int32)])
        self.starts = np.cumsum([0, *(len(c) + 1 for c in codes[:-1])]) if codes else np.zeros(0, np.int64)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """Length of the longest common substring, the spaces counted: `(queries, texts)`."""
        out = np.zeros((len(queries), self.size))
        for i, query in enumerate(queries if self.size else ()):
            run, best = np.zeros(len(self.row), np.int32), np.zeros(len(self.row), np.int32)
            for code in _codes(query):
                run[1:] = (run[:-1] + 1) * (self.row[1:] == code)
                np.maximum(best, run, out=best)
            out[i] = np.maximum.reduceat(best, self.starts)
        return out


def _codes(text: str) -> NDArray[np.int32]:
    return np.frombuffer(f" {text} ".encode("utf-32-le", "surrogatepass"), np.int32)


def embedded(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """The vectors of texts by any embedder, in rows of length 1 (a row of zeros stays).

    Raises:
        UserError: not one vector a text, or one that is no numbers.
    """
    made = embedder(texts)
    made = made if sparse.issparse(made) else np.asarray(made)
    if made.ndim != 2 or made.shape[0] != len(texts):
        raise UserError(f"embedder: {len(texts)} texts gave an array of shape {made.shape}: one row a text is expected")
    if not np.issubdtype(made.dtype, np.floating):
        made = made.astype(np.float64)
    if not np.isfinite(made.data if sparse.issparse(made) else made).all():
        raise UserError("embedder: a vector holds what is no finite number")
    return unit(made)


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; one of zeros stays."""
    from sklearn.preprocessing import normalize

    return normalize(vectors) if vectors.shape[0] and vectors.shape[1] else vectors


def nearest(
    queries: Vectors,
    pool: Vectors,
    k: int,
    query_ids: Sequence[Hashable] | None = None,
    pool_ids: Sequence[Hashable] | None = None,
) -> Hits:
    """The k rows of `pool` with the highest cosine to every row of `queries`, those of its own id left out.

    Args:
        queries: `(m, d)`, in rows of length 1 (`embedded`, `unit`).
        pool: `(n, d)`, the same.
        k: how many.
        query_ids: of every query.
        pool_ids: of every row of the pool; both or neither.
    """
    across = pool.T

    def scores(at: slice) -> Any:
        made = queries[at] @ across
        return np.asarray(made.todense()) if sparse.issparse(made) else made

    return _best(scores, queries.shape[0], pool.shape[0], k, query_ids, pool_ids)


def fitting(
    order: Sequence[int], sizes: Sequence[int], room: int, most: int | None = None, on_overflow: Overflow = "stop"
) -> list[int]:
    """Which of `order`, best first, are shown: as many as fit, and the best LAST, next to what is asked.

    Args:
        order: positions, best first.
        sizes: tokens of every position, with what separates it from the next.
        room: tokens for all of them.
        most: how many at most.
        on_overflow: at the first that does not fit `stop`, or `skip` it and try the next.
    """
    out: list[int] = []
    for i in order:
        if most is not None and len(out) >= most:
            break
        if sizes[i] <= room:
            room -= sizes[i]
            out.append(i)
        elif on_overflow == "stop":
            break
    return out[::-1]


def _best(
    scores: Callable[[slice], Any],
    m: int,
    n: int,
    k: int,
    query_ids: Sequence[Hashable] | None,
    pool_ids: Sequence[Hashable] | None,
) -> Hits:
    """The k best columns of every row of scores, which are made some rows at a time."""
    where: dict[Hashable, list[int]] = defaultdict(list)
    for j, name in enumerate(pool_ids if pool_ids is not None and query_ids is not None else ()):
        where[name].append(j)
    index, score = np.full((m, k), NONE), np.full((m, k), -np.inf)
    step, found = max(1, CHUNK // max(n, 1)), min(k, n)
    for first in range(0, m if found else 0, step):
        at = slice(first, min(first + step, m))
        some = np.array(scores(at))
        for row, i in enumerate(range(first, at.stop) if where else ()):
            some[row, where.get(query_ids[i] if query_ids is not None else None, [])] = -np.inf
        best = _largest(some, found)
        value = np.take_along_axis(some, best, 1)
        index[at, :found] = np.where(value == -np.inf, NONE, best)
        score[at, :found] = value
    return Hits(index, score)


def _largest(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the k largest of every row `(m, k)`, in their order; equals by their column."""
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    best = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
    value = np.take_along_axis(scores, best, 1)
    last = value.min(1, keepdims=True)
    # Which of those that equal the last a partition takes is left to chance: the first of them are wanted.
    for row in np.flatnonzero((scores == last).sum(1) > (value == last).sum(1)):
        above = np.flatnonzero(scores[row] > last[row])
        best[row] = np.sort([*above, *np.flatnonzero(scores[row] == last[row])[: k - len(above)]])
    value = np.take_along_axis(scores, best, 1)
    return np.take_along_axis(best, np.argsort(-value, axis=1, kind="stable"), 1)
