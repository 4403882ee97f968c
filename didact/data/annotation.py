"""Which of many texts to annotate: vote-k on a nearest-neighbour graph, and the selectors it is compared with. Pure.

Texts are unit-length row vectors. Ties go to the first text, so that a selection is deterministic.

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
SAME = 1e-9  # relative tolerance within which votes are equal
PAPER_K = 150  # most neighbours by default: the paper's k, for a pool of 3,000
COVERED = 0.9  # least confident share of the pool, which is cut into buckets
PROBES = 8  # cells searched in an approximate index


def neighbours(vectors: Vectors, k: int | None = None, approximate: bool = False) -> NDArray[np.int32]:
    """Indices of each text's k most similar other texts, `(n, k)`, by exact search or an approximate index of cells
    (faiss), where a row ends in -1 if fewer are found.

    k is by default 0.05 n as in the paper, at least 2 and at most 150. Its share of n matters more than its size.

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
    """Votes during a selection: a text votes for its neighbours with weight `rho^-(number of them already selected)`.

    `scores (n + 1,)` sums the votes of unselected texts; `take` selects one. Only scores whose voters changed are
    updated, so that a pick costs no pass over the pool.
    """

    def __init__(self, graph: NDArray[np.int32], rho: float = 10.0) -> None:
        n, k = graph.shape
        self.graph, self.rho = np.where(graph < 0, n, graph), rho  # missing neighbours point to an extra item n
        to = self.graph.ravel()
        count = np.bincount(to, minlength=n + 1)
        self.voters = (np.argsort(to, kind="stable") // max(k, 1)).astype(np.int32)
        self.ends = np.concatenate([[0], np.cumsum(count)])
        self.weight, self.taken = np.ones(n), np.zeros(n, dtype=bool)
        self.scores = count.astype(np.float64)

    def take(self, item: int) -> None:
        """Select an item: its voters' votes are discounted from now on, and its own no longer count."""
        voters = self.voters[self.ends[item] : self.ends[item + 1]]
        voters = voters[~self.taken[voters]]
        lost = self.weight[voters] * (1 - 1 / self.rho)
        self.weight[voters] /= self.rho
        np.subtract.at(self.scores, self.graph[voters], lost[:, None])
        if not self.taken[item]:
            self.scores[self.graph[item]] -= self.weight[item]
        self.taken[item] = True

    def best(self, among: NDArray[np.int64] | None = None) -> int | None:
        """Return the unselected item with the most votes, of all or of `among` in its order; None if there is none."""
        candidates = np.arange(len(self.taken)) if among is None else among
        candidates = candidates[~self.taken[candidates]]
        if not len(candidates):
            return None
        votes = self.scores[candidates]
        return int(candidates[np.argmax(votes >= votes.max() - SAME * max(1.0, abs(votes.max())))])


def voted(graph: NDArray[np.int32], count: int, rho: float = 10.0, votes: Votes | None = None) -> list[int]:
    """Fast vote-k: select the item with the most votes, `count` times."""
    votes, out = votes or Votes(graph, rho), list[int]()
    while len(out) < count and (item := votes.best()) is not None:
        votes.take(item)
        out.append(item)
    return out


def voted_in_buckets(
    graph: NDArray[np.int32], first: Sequence[int], confidence: Sequence[float], count: int, rho: float = 10.0,
    seed: int = 0,
) -> list[int]:  # fmt: skip
    """The second step of vote-k: `first`, then one item of every bucket of similar confidence, least confident first.

    The pool is sorted by confidence, with `first` last, and its first nine tenths are cut into `count - len(first)`
    buckets. Votes are discounted for `first` and after every pick. If there are too few buckets, the remaining items
    are drawn at random.
    """
    votes, n, out = Votes(graph, rho), len(graph), list(first)
    for item in first:
        votes.take(item)
    buckets = count - len(first)
    order = np.argsort(np.where(votes.taken, np.inf, np.asarray(confidence, float)), kind="stable")
    size = int(COVERED * n / buckets) if buckets > 0 else 0
    for i in range(buckets if size else 0):
        if (best := votes.best(order[i * size : (i + 1) * size])) is not None:
            votes.take(best)
            out.append(best)
    unselected = np.flatnonzero(~votes.taken)
    return out + np.random.default_rng([seed, 61]).permutation(unselected)[: count - len(out)].tolist()


def diverse(vectors: Vectors, count: int, seed: int = 0) -> list[int]:
    """Start from a random text, then repeatedly add the one with the lowest summed cosine to those selected."""
    n = vectors.shape[0]
    out = [int(np.random.default_rng([seed, 62]).integers(n))] if n and count else []
    total, selected = np.zeros(n), np.zeros(n, dtype=bool)
    while out and len(out) < min(count, n):
        selected[out[-1]] = True
        total += _against(vectors, slice(out[-1], out[-1] + 1))[0]
        out.append(int(np.argmin(np.where(selected, np.inf, total))))
    return out


def covering(vectors: Vectors, count: int) -> list[int]:
    """Facility location: repeatedly add the text that most raises the summed best cosine of all texts to the selection.

    Gains only fall, so a text whose recomputed gain still leads is the best one (lazy greedy, exact).
    """
    n, out = vectors.shape[0], list[int]()
    best = np.full(n, -1.0)
    step = max(1, retrieval.CHUNK // max(n, 1))
    gains = [(_against(vectors, slice(i, i + step)).astype(float) - best).clip(0).sum(1) for i in range(0, n, step)]
    heap = [(-float(g), i, 0) for i, g in enumerate(np.concatenate(gains) if gains else [])]
    heapq.heapify(heap)
    while heap and len(out) < count:
        _, item, n_selected = heapq.heappop(heap)
        cosines = _against(vectors, slice(item, item + 1))[0].astype(float)
        if n_selected == len(out):
            out.append(item)
            best = np.maximum(best, cosines)
        else:
            heapq.heappush(heap, (-float((cosines - best).clip(0).sum()), item, len(out)))
    return out


def _against(vectors: Vectors, rows: slice) -> Floats:
    """Cosines of some rows with all rows, `(rows, n)`."""
    cosines = vectors[rows] @ vectors.T
    return np.asarray(cosines if isinstance(cosines, np.ndarray) else cosines.todense())


def _by_cells(vectors: Vectors, k: int) -> NDArray[np.int32]:
    """Neighbours from the nearest cells of an index: most of the true ones, at far less cost than n^2."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError("approximate neighbours: the package faiss is missing: pip install didact[index]") from None
    if not isinstance(vectors, np.ndarray):
        raise UserError("approximate neighbours need an embedder of dense vectors; TF-IDF gives sparse ones")
    dense, n = np.ascontiguousarray(vectors, dtype=np.float32), len(vectors)
    cells = max(1, int(2 * np.sqrt(n)))
    index: Any = faiss.index_factory(dense.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(dense[np.random.default_rng(63).permutation(n)[: 40 * cells]])
    index.add(dense)
    index.nprobe = PROBES
    out = np.empty((n, k), np.int32)
    for first in range(0, n, 1 << 16):
        hits = index.search(dense[first : first + (1 << 16)], k + 1)[1]
        own = np.arange(first, first + len(hits))[:, None]
        last = np.where((hits == own).any(1), hits.shape[1], k)[:, None]  # drop the text itself, or else the farthest
        keep = (hits != own) & (np.arange(k + 1) < last)
        out[first : first + len(hits)] = hits[keep].reshape(-1, k)
    return out
