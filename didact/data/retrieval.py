"""Nearest texts to a query: by cosine of any vectors, by BM25, or by the longest common substring. Pure, without
torch.

Scores are computed some queries at a time, so that memory grows with the pool and not with its square. Ties keep the
pool's order. A query's own text is excluded by id: another text may have cosine 1, and its own may have less.
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
"""`(n, d)`, one row per text: a numpy array or a scipy sparse one."""
Embedder = Callable[[Sequence[str]], Vectors]
"""Turns texts into vectors."""
Overflow = Literal["stop", "skip"]
CHUNK = 1 << 24  # scores in memory at a time
NOTHING = "nothing"  # the vocabulary if no text has words
BETWEEN = -2  # separator that is no character
NONE = -1  # position if the pool has no further text


class Hits(NamedTuple):
    """The k best texts for every query, best first: positions in the pool `(m, k)` and their scores.

    If there are fewer than k, `positions` end in -1 and `scores` in -inf.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.floating[Any]]

    def lists(self) -> list[list[int]]:
        """The positions found, one list per query."""
        return [[int(i) for i in row if i != NONE] for row in self.positions]


def terms(text: str) -> list[str]:
    """The terms that TF-IDF and BM25 count: words in any script, case-folded."""
    return [word.casefold() for word in words.words(text)]


class TfIdf:
    """An embedder: counts of the words of `texts`, each times `1 + ln((1 + N) / (1 + n))`, in rows of length 1.

    Words that occur in none of the `texts` are ignored; a text of such words alone is a row of zeros.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(analyzer=terms)
        self._vectorizer.fit(texts if any(map(terms, texts)) else [NOTHING])

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """One sparse row per text."""
        return self._vectorizer.transform(texts) if texts else sparse.csr_array((0, len(self._vectorizer.vocabulary_)))


class Scorer:
    """Scores every text of a pool for every query and finds the best; `size` is the number of texts."""

    size: int

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """`(queries, texts)`, higher is nearer."""
        raise NotImplementedError  # implemented by BM25 and Substrings

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
    """Okapi's BM25 over `texts`, the sum over the query's words t (repeated words count again) of

        idf(t) f (k1 + 1) / (f + k1 (1 - b + b L / mean L)),    idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5))

    f is the count of t in the text, L its length in words; n of N texts have t. This idf (Lucene's) is never negative.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._vectorizer = CountVectorizer(analyzer=terms)
        corpus = texts if any(map(terms, texts)) else [*texts, NOTHING]
        counts = sparse.csr_array(self._vectorizer.fit_transform(corpus)[: len(texts)].astype(np.float64))
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
        return np.asarray((sparse.csr_array(self._vectorizer.transform(queries)) @ self.weights.T).todense())


class Substrings(Scorer):
    """Nearest by the longest common substring, with a space put on both sides of each text, so that a whole word is
    nearer than the same letters inside another one."""

    def __init__(self, texts: Sequence[str]) -> None:
        codes = [_codes(text) for text in texts]
        self.size = len(codes)
        # All texts in one row, each after a separator that no text contains, so that no run crosses texts.
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
    """Embed texts, scaled to rows of length 1 (a row of zeros stays).

    Raises:
        UserError: the embedder does not give one vector per text, or gives one that is not finite.
    """
    vectors = embedder(texts)
    vectors = vectors if sparse.issparse(vectors) else np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[0] != len(texts):
        raise UserError(f"embedder: {len(texts)} texts gave an array of shape {vectors.shape}, not one row per text")
    if not np.issubdtype(vectors.dtype, np.floating):
        vectors = vectors.astype(np.float64)
    if not np.isfinite(vectors.data if sparse.issparse(vectors) else vectors).all():
        raise UserError("embedder: a vector has values that are not finite")
    return unit(vectors)


def unit(vectors: Vectors) -> Vectors:
    """Scale rows to length 1; a row of zeros stays."""
    from sklearn.preprocessing import normalize

    return normalize(vectors) if vectors.shape[0] and vectors.shape[1] else vectors


def nearest(
    queries: Vectors,
    pool: Vectors,
    k: int,
    query_ids: Sequence[Hashable] | None = None,
    pool_ids: Sequence[Hashable] | None = None,
) -> Hits:
    """The k rows of `pool` with the highest cosine to every row of `queries`, without those of the same id.

    Args:
        queries: `(m, d)`, in rows of length 1 (`embedded`, `unit`).
        pool: `(n, d)`, the same.
        k: number of rows.
        query_ids: id of every query.
        pool_ids: id of every row of the pool; both or neither.
    """
    transposed = pool.T

    def scores(at: slice) -> Any:
        products = queries[at] @ transposed
        return np.asarray(products.todense()) if sparse.issparse(products) else products

    return _best(scores, queries.shape[0], pool.shape[0], k, query_ids, pool_ids)


def fitting(
    order: Sequence[int], sizes: Sequence[int], room: int, most: int | None = None, on_overflow: Overflow = "stop"
) -> list[int]:
    """Choose from `order` (best first) as many as fit, returned with the best LAST, next to the query.

    Args:
        order: positions, best first.
        sizes: tokens of every position, including the separator after it.
        room: tokens for all of them.
        most: largest number.
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
    """The k best columns of every row of scores, which are computed some rows at a time."""
    positions: dict[Hashable, list[int]] = defaultdict(list)
    for j, name in enumerate(pool_ids if pool_ids is not None and query_ids is not None else ()):
        positions[name].append(j)
    index, score = np.full((m, k), NONE), np.full((m, k), -np.inf)
    step, count = max(1, CHUNK // max(n, 1)), min(k, n)
    for first in range(0, m if count else 0, step):
        at = slice(first, min(first + step, m))
        block = np.array(scores(at))
        for row, i in enumerate(range(first, at.stop) if positions else ()):
            block[row, positions.get(query_ids[i] if query_ids is not None else None, [])] = -np.inf
        best = _largest(block, count)
        value = np.take_along_axis(block, best, 1)
        index[at, :count] = np.where(value == -np.inf, NONE, best)
        score[at, :count] = value
    return Hits(index, score)


def _largest(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the k largest values of every row `(m, k)`, largest first, ties by column."""
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    best = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
    value = np.take_along_axis(scores, best, 1)
    last = value.min(1, keepdims=True)
    # A partition breaks ties at the k-th value arbitrarily: take the first columns instead.
    for row in np.flatnonzero((scores == last).sum(1) > (value == last).sum(1)):
        above = np.flatnonzero(scores[row] > last[row])
        best[row] = np.sort([*above, *np.flatnonzero(scores[row] == last[row])[: k - len(above)]])
    value = np.take_along_axis(scores, best, 1)
    return np.take_along_axis(best, np.argsort(-value, axis=1, kind="stable"), 1)
