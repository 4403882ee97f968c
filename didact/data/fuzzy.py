"""Near-duplicate documents in large collections: MinHash candidates, verified and grouped.

Pieces are character 5-grams, the last one included. Two documents are candidates if all rows of one band of their
MinHashes agree, which has probability `1 - (1 - J^r)^b` at Jaccard similarity J; then the exact similarity is
computed, so that there are no false positives. Groups are the connected components of such pairs.

Sources: Smith et al. 2022, arXiv:2201.11990, section 3; Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

from didact.data import words
from didact.types import UserError

Measure = Literal["union", "min", "max"]
GRAM = 5  # characters of a piece
HELD = 2048  # documents whose pieces are cached while candidates are verified


def pieces(text: str, n: int = GRAM) -> set[str]:
    """Character n-grams, up to white space, case and normal form; a shorter text is one piece."""
    plain = " ".join(words.folded(text.casefold()).split())
    return {plain[i : i + n] for i in range(max(1, len(plain) - n + 1))}


def similarity(a: set[str], b: set[str], by: Measure = "union") -> float:
    """`|A & B|` over `|A | B|` (Jaccard), over the smaller of both (containment), or over the larger."""
    common = len(a & b)
    return common / {"union": len(a) + len(b) - common, "min": min(len(a), len(b)), "max": max(len(a), len(b))}[by]


def probability(similar: float, bands: int = 10, rows: int = 10) -> float:
    """Probability that two documents of this similarity are compared at all: `1 - (1 - J^r)^b`."""
    return 1 - (1 - similar**rows) ** bands


def package() -> Any:
    """Import datasketch.

    Raises:
        UserError: it is not installed.
    """
    try:
        import datasketch
    except ImportError:
        raise UserError("near duplicates: the package datasketch is missing: pip install didact[curate]") from None
    return datasketch


def sketch(parts: Iterable[str], hashes: int) -> Any:
    """The MinHash of a set of pieces."""
    out = package().MinHash(num_perm=hashes, seed=1)
    out.update_batch([part.encode("utf-8", "surrogatepass") for part in parts])
    return out


class Groups:
    """Groups of near duplicates among documents that are added one by one.

    Args:
        text: returns a document's text by its number; only its MinHash is stored here.
        similar: similarity from which two documents are near duplicates.
        bands: bands of hashes; two documents are compared if they agree in one.
        rows: hashes per band.
        by: the denominator of the similarity.
    """

    def __init__(
        self, text: Callable[[int], str], similar: float = 0.8, bands: int = 10, rows: int = 10, by: Measure = "union"
    ) -> None:
        self.similar, self.hashes, self.by = similar, bands * rows, by
        self.compared = 0
        self._index = package().MinHashLSH(num_perm=self.hashes, params=(bands, rows))
        self._parent: dict[int, int] = {}
        self._by_digest: dict[str, int] = {}
        self.pieces = functools.lru_cache(HELD)(lambda number: pieces(text(number)))

    def add(self, number: int, text: str) -> None:
        """Add a document; numbers must rise, and the first of a group is the one to keep."""
        self._parent[number] = number
        plain = " ".join(words.folded(text.casefold()).split())
        if (first := self._by_digest.setdefault(_digest(plain), number)) != number:
            self._join(first, number)  # of identical texts only the first is indexed
            return
        own = self.pieces(number)
        hashed = sketch(own, self.hashes)
        for candidate in sorted(self._index.query(hashed)):
            if self.first(candidate) == self.first(number):
                continue  # already in one group: another pair would change nothing
            self.compared += 1
            if similarity(own, self.pieces(candidate), self.by) >= self.similar:
                self._join(candidate, number)
        self._index.insert(number, hashed)

    def first(self, number: int) -> int:
        """The first document of a document's group."""
        while (parent := self._parent[number]) != number:
            self._parent[number] = self._parent[parent]
            number = parent
        return number

    def all(self) -> dict[int, list[int]]:
        """Groups of more than one, by their first document."""
        out: dict[int, list[int]] = {}
        for number in self._parent:
            out.setdefault(self.first(number), []).append(number)
        return {first: members for first, members in out.items() if len(members) > 1}

    def _join(self, a: int, b: int) -> None:
        a, b = sorted((self.first(a), self.first(b)))
        self._parent[b] = a


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
