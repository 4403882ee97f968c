"""Which of many texts to have labelled: votes in a graph of neighbours, and the selectors it is compared with. Pure.

Texts come as vectors in rows of length 1. Of equals the first is taken, so that a selection follows from the pool.

Source: Su et al. 2022, arXiv:2209.01975.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from didact.data import retrieval
from didact.data.retrieval import Vectors
from didact.types import UserError

Floats = NDArray[np.float64]
SAME = 1e-9  # relative: votes nearer than this are equal
PAPER_K = 150  # neighbours at most: the paper's, of 3,000
COVERED = 0.9  # share of the pool, the least confident, that buckets are cut from
PROBES = 8  # of an approximate index: cells looked through


def neighbours(vectors: Vectors, k: int | None = None, approximate: bool = False) -> NDArray[np.int32]:
    """The k most similar other texts of each `(n, k)`, from an exact search or an index of cells (faiss), where a row
    ends in -1 if fewer were found.

    k is by default 0.05 n as in the paper, 2 at least and 150 at most. Whether it is a small share of n matters more
    than its size.

    Raises:
        UserError: faiss is not installed.
    """
    n = vectors.shape[0]
    k = min(n - 1, k or min(PAPER_K, max(2, round(0.05 * n))))
    if k < 1:
        return np.zeros((n, 0), np.int32)
    if approximate:
        return _by_cells(vectors, k)
    return retrieval.nearest(vectors, vectors, k, range(n), range(n)).positions.astype(np.int32)


class Votes:
    """Votes as items are taken: a text votes for its neighbours, by `rho^-(those of them that are taken)`.

    `scores (n + 1,)` is the sum of the votes of texts not taken; `take` takes one. What changes is those whose voters
    changed, so that a pick costs no pass over the pool.
    """

    def __init__(self, graph: NDArray[np.int32], rho: float = 10.0) -> None:
        n, k = graph.shape
        self.graph, self.rho = np.where(graph < 0, n, graph), rho  # a missing neighbour is one beyond the last
        to = self.graph.ravel()
        count = np.bincount(to, minlength=n + 1)
        self.voters = (np.argsort(to, kind="stable") // max(k, 1)).astype(np.int32)
        self.ends = np.concatenate([[0], np.cumsum(count)])
        self.weight, self.taken = np.ones(n), np.zeros(n, dtype=bool)
        self.scores = count.astype(np.float64)

    def take(self, item: int) -> None:
        """Its voters' votes count less from now on, and its own nothing."""
        voters = self.voters[self.ends[item] : self.ends[item + 1]]
        voters = voters[~self.taken[voters]]
        lost = self.weight[voters] * (1 - 1 / self.rho)
        self.weight[voters] /= self.rho
        np.subtract.at(self.scores, self.graph[voters], lost[:, None])
        if not self.taken[item]:
            self.scores[self.graph[item]] -= self.weight[item]
        self.taken[item] = True

    def best(self, among: NDArray[np.int64] | None = None) -> int | None:
        """The one with the most votes that is not taken, of all or of some in their order; None where all are."""
        at = np.arange(len(self.taken)) if among is None else among
        at = at[~self.taken[at]]
        if not len(at):
            return None
        votes = self.scores[at]
        return int(at[np.argmax(votes >= votes.max() - SAME * max(1.0, abs(votes.max())))])


def voted(graph: NDArray[np.int32], most: int, rho: float = 10.0, votes: Votes | None = None) -> list[int]:
    """Fast vote-k: the item with the most votes, `most` times."""
    votes, out = votes or Votes(graph, rho), list[int]()
    while len(out) < most and (item := votes.best()) is not None:
        votes.take(item)
        out.append(item)
    return out


def voted_in_buckets(
    graph: NDArray[np.int32], first: Sequence[int], confidence: Sequence[float], most: int, rho: float = 10.0,
    seed: int = 0,
) -> list[int]:  # fmt: skip
    """The second step of vote-k: `first`, then one item of every bucket of equal confidence, least confident first.

    The pool is sorted by confidence, those of `first` last, and cut into `most - len(first)` buckets that cover its
    first nine tenths. Votes are discounted for `first` and after every pick. Where buckets are too few, the rest is
    drawn at random.
    """
    votes, n, out = Votes(graph, rho), len(graph), list(first)
    for item in first:
        votes.take(item)
    rest = most - len(first)
    order = np.argsort(np.where(votes.taken, np.inf, np.asarray(confidence, float)), kind="stable")
    size = int(COVERED * n / rest) if rest > 0 else 0
    for i in range(rest if size else 0):
        if (best := votes.best(order[i * size : (i + 1) * size])) is not None:
            votes.take(best)
            out.append(best)
    left = np.flatnonzero(~votes.taken)
    return out + np.random.default_rng([seed, 61]).permutation(left)[: most - len(out)].tolist()


def diverse(vectors: Vectors, most: int, seed: int = 0) -> list[int]:
    """A random one, then each time the one with the least cosine to those taken, added up."""
    n = vectors.shape[0]
    out = [int(np.random.default_rng([seed, 62]).integers(n))] if n and most else []
    total, taken = np.zeros(n), np.zeros(n, dtype=bool)
    while out and len(out) < min(most, n):
        taken[out[-1]] = True
        total += _against(vectors, slice(out[-1], out[-1] + 1))[0]
        out.append(int(np.argmin(np.where(taken, np.inf, total))))
    return out


def covering(vectors: Vectors, most: int) -> list[int]:
    """Facility location: each time the one by which the most similar taken one of all texts gains the most in cosine.

    Gains only fall, so that one whose gain is computed anew and still leads is the best (lazy greedy, exact).
    """
    n, out = vectors.shape[0], list[int]()
    best = np.full(n, -1.0)
    step = max(1, retrieval.CHUNK // max(n, 1))
    gains = [(_against(vectors, slice(i, i + step)).astype(float) - best).clip(0).sum(1) for i in range(0, n, step)]
    heap = [(-float(g), i, 0) for i, g in enumerate(np.concatenate(gains) if gains else [])]
    heapq.heapify(heap)
    while heap and len(out) < most:
        _, item, seen = heapq.heappop(heap)
        near = _against(vectors, slice(item, item + 1))[0].astype(float)
        if seen == len(out):
            out.append(item)
            best = np.maximum(best, near)
        else:
            heapq.heappush(heap, (-float((near - best).clip(0).sum()), item, len(out)))
    return out


def _against(vectors: Vectors, at: slice) -> Floats:
    """Cosines of some rows with all of them, `(rows, n)`."""
    made = vectors[at] @ vectors.T
    return np.asarray(made if isinstance(made, np.ndarray) else made.todense())


def _by_cells(vectors: Vectors, k: int) -> NDArray[np.int32]:
    """Neighbours among the texts of the nearest cells: most of the right ones, in time that hardly grows with n^2."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError("approximate neighbours: the package faiss is missing: pip install didact[index]") from None
    if not isinstance(vectors, np.ndarray):
        raise UserError("approximate neighbours need an embedder of dense vectors, which TF-IDF's are not")
    dense, n = np.ascontiguousarray(vectors, dtype=np.float32), len(vectors)
    cells = max(1, int(2 * np.sqrt(n)))
    index: Any = faiss.index_factory(dense.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(dense[np.random.default_rng(63).permutation(n)[: 40 * cells]])
    index.add(dense)
    index.nprobe = PROBES
    out = np.empty((n, k), np.int32)
    for first in range(0, n, 1 << 16):
        found = index.search(dense[first : first + (1 << 16)], k + 1)[1]
        own = np.arange(first, first + len(found))[:, None]
        last = np.where((found == own).any(1), found.shape[1], k)[:, None]  # itself, or else the farthest, is left out
        kept = (found != own) & (np.arange(k + 1) < last)
        out[first : first + len(found)] = found[kept].reshape(-1, k)
    return out
