"""Find the occurrences of many n-grams in a text.

Only words of the n-grams get an id; n ids in a row are hashed, and where a hash equals that of an n-gram, the words
themselves are compared: no false positives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Gram = tuple[str, ...]
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers never lose bits


class Finder:
    """Finds n-grams in a list of words: `finder(words)` returns `[(position, gram)]`."""

    def __init__(self, grams: Iterable[Gram], n: int) -> None:
        self.grams, self.n = set(grams), n
        vocabulary = dict.fromkeys(w for gram in self.grams for w in gram)
        self.number = {w: i + 1 for i, w in enumerate(vocabulary)}
        ids = np.array([[self.number[w] for w in g] for g in self.grams], dtype=np.uint64).reshape(-1, n)
        self.powers = np.array([pow(int(BASE), k, 1 << 64) for k in range(n)], dtype=np.uint64)
        self.hashes = np.sort((_mixed(ids) * self.powers).sum(1, dtype=np.uint64))

    def __call__(self, text: Sequence[str]) -> list[tuple[int, Gram]]:
        """All occurrences, in order."""
        windows = len(text) - self.n + 1
        if windows < 1 or not len(self.hashes):
            return []
        ids = np.fromiter((self.number.get(w, 0) for w in text), dtype=np.uint64, count=len(text))
        # No n-gram has an unknown word: only runs of n known words are hashed.
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        starts = np.flatnonzero(unknown[self.n :] == unknown[: -self.n])
        if not len(starts):
            return []
        mixed = _mixed(ids)
        value = np.zeros(len(starts), dtype=np.uint64)
        for k in range(self.n):
            value += mixed[starts + k] * self.powers[k]
        index = np.minimum(np.searchsorted(self.hashes, value), len(self.hashes) - 1)
        candidates = starts[self.hashes[index] == value].tolist()
        return [(i, gram) for i in candidates if (gram := tuple(text[i : i + self.n])) in self.grams]


def _mixed(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers spread over 64 bits, so that sums of products with powers rarely collide."""
    x = ids * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(29)
    return x * np.uint64(0x94D049BB133111EB)
