"""Find test items in training text and cut them out of it. Pure functions over strings.

Words are compared in lower case without punctuation.

Source: Brown et al. 2020, arXiv:2005.14165, appendices A and C.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from didact.data import fuzzy
from didact.data import words as forms
from didact.data.ngrams import Finder, Gram

SENTENCE = re.compile(r"[.!?。！？]")  # characters that end one


@dataclass(frozen=True)
class Audit:
    """Items that share an n-gram with the text: `dirty (items,)`, and `where`, each item's first matching document."""

    n: int
    dirty: NDArray[np.bool_]
    where: list[int | None]

    @property
    def share(self) -> float:
        """Share of items that are dirty."""
        return float(self.dirty.mean()) if len(self.dirty) else 0.0


@dataclass(frozen=True)
class Removal:
    """The remaining text of documents: `pieces`, with the index of their document in `source`.

    `collisions` is the number of places cut, `dropped` lists the documents of which nothing is left.
    """

    pieces: list[str]
    source: list[int]
    collisions: int
    dropped: list[int]


def words(text: str) -> list[str]:
    """Words in lower case and normal form without punctuation; scripts without spaces are split into letters."""
    return forms.tokens(forms.folded(text.lower()).translate(_punctuation()))


def gram_length(items: Sequence[str], low: int = 8, high: int = 13) -> int:
    """Length in words of an n-gram that counts as overlap: the 5th percentile of item lengths, within [8, 13]."""
    if not items:
        return high
    return int(np.clip(np.percentile([len(words(item)) for item in items], 5), low, high))


def audit(items: Sequence[str], corpus: Iterable[str], n: int | None = None) -> Audit:
    """Mark an item as dirty if ANY of its n-grams occurs in the text; an item with fewer than n words has none.

    Args:
        items: test items, each with all its text.
        corpus: training documents.
        n: length of the n-grams in words; by default from the items' lengths.
    """
    n = n or gram_length(items)
    grams = [_grams(words(item), n) for item in items]
    owners: dict[Gram, list[int]] = {}
    for i, item_grams in enumerate(grams):
        for gram in item_grams:
            owners.setdefault(gram, []).append(i)
    where: list[int | None] = [None] * len(items)
    finder = Finder(owners, n)
    for number, document in enumerate(corpus):
        for _, gram in finder(words(document)):
            for i in owners[gram]:
                where[i] = number if where[i] is None else where[i]
    return Audit(n, np.array([w is not None for w in where], dtype=bool), where)


def remove(
    documents: Sequence[str],
    benchmark: Iterable[str],
    *,
    n: int = 13,
    window: int = 200,
    shortest: int = 200,
    most_pieces: int = 10,
    common: int = 10,
) -> Removal:
    """Cut out of documents what they share with a benchmark.

    Every n-gram of words that occurs in both is cut out with `window` characters on each side, which splits the
    document there.

    Args:
        documents: training text.
        benchmark: test items.
        n: length of the n-grams in words.
        window: characters cut on each side.
        shortest: pieces with fewer characters are dropped.
        most_pieces: a document split into more pieces (before short ones are dropped) is dropped whole.
        common: n-grams in more documents than this are common phrases and stay.
    """
    cutter = Cutter(benchmark, n=n, window=window, shortest=shortest, most_pieces=most_pieces, common=common)
    for document in documents:
        cutter.count(document)
    pieces, source, dropped, collisions = [], [], [], 0
    for number, document in enumerate(documents):
        remaining, cuts = cutter.cut(document)
        collisions += cuts
        pieces += remaining
        source += [number] * len(remaining)
        if cuts and not remaining:
            dropped.append(number)
    return Removal(pieces, source, collisions, dropped)


class Cutter:
    """Cuts test items out of documents in two passes over them: `count` all, then `cut` all.

    Args:
        benchmark: test items.
        n: length of the n-grams in words.
        window: characters cut on each side.
        shortest: pieces with fewer characters are dropped.
        most_pieces: a document split into more pieces is dropped whole.
        common: n-grams in more documents than this stay.
        whole: items of fewer than n words but at least this many are matched as a whole; 0 ignores them.
        sentences: extend cuts to a sentence end on both sides, so that no piece starts or ends within a sentence.
    """

    def __init__(
        self, benchmark: Iterable[str], *, n: int = 13, window: int = 200, shortest: int = 200, most_pieces: int = 10,
        common: int = 10, whole: int = 0, sentences: bool = False,
    ) -> None:  # fmt: skip
        self.window, self.shortest, self.most_pieces, self.common = window, shortest, most_pieces, common
        self.sentences = sentences
        by_size: dict[int, set[Gram]] = {n: set()}
        for item in benchmark:
            tokens = words(item)
            size = len(tokens) if whole and whole <= len(tokens) < n else n
            by_size.setdefault(size, set()).update(_grams(tokens, size))
        self.finders = [Finder(grams, size) for size, grams in by_size.items()]
        self.counts: collections.Counter[Gram] = collections.Counter()

    def count(self, document: str) -> None:
        """Add a document to the document counts of its n-grams."""
        self.counts.update({gram for _, gram in self._matches(document)})

    def cut(self, document: str) -> tuple[list[str], int]:
        """Return the remaining pieces of a document (the document itself if nothing is cut) and the number of cuts."""
        spans = [(at, at + len(gram)) for at, gram in self._matches(document) if self.counts[gram] <= self.common]
        if not spans:
            return [document], 0
        cuts = self._merged(document, sorted(spans))
        parts = _between(document, cuts)
        remaining = [p for p in parts if len(p) >= self.shortest] if len(parts) <= self.most_pieces else []
        return remaining, len(cuts)

    def _matches(self, document: str) -> list[tuple[int, Gram]]:
        tokens = words(document)
        return [hit for finder in self.finders for hit in finder(tokens)]

    def _merged(self, document: str, matches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Character spans to cut: the words of each match with a window around them, merged where they overlap."""
        spans = list(_spans(document))
        out: list[tuple[int, int]] = []
        for first, after in matches:
            low, high = max(0, spans[first][0] - self.window), min(len(document), spans[after - 1][1] + self.window)
            if self.sentences:
                low = max((m.end() for m in SENTENCE.finditer(document, 0, low)), default=0)
                high = m.end() if (m := SENTENCE.search(document, max(0, high - 1))) else len(document)
            if out and low <= out[-1][1]:
                out[-1] = (out[-1][0], max(out[-1][1], high))
            else:
                out.append((low, high))
        return out


def near_duplicates(texts: Sequence[str], similar: float = 0.8, hashes: int = 10, n: int = 5) -> list[int | None]:
    """For every text, the index of an earlier near duplicate, or None.

    Two texts are near duplicates if `|A & B| / |A | B| >= similar` for their sets of word n-grams. Only pairs that
    MinHash LSH with `hashes` permutations puts into one bucket are compared, so some are missed, more with fewer
    hashes; there are no false positives. Later texts are not compared with one that is itself a near duplicate.

    Raises:
        UserError: the package datasketch is not installed.
    """
    index = fuzzy.package().MinHashLSH(threshold=similar, num_perm=hashes)
    earlier: dict[int, set[Gram]] = {}
    out: list[int | None] = []
    for number, text in enumerate(texts):
        tokens = words(text)
        grams = _grams(tokens, min(n, max(1, len(tokens))))
        sketch = fuzzy.sketch((" ".join(gram) for gram in grams), hashes)
        matches = [
            i for i in sorted(index.query(sketch)) if len(grams & earlier[i]) >= similar * len(grams | earlier[i])
        ]
        out.append(matches[0] if matches else None)
        if not matches:
            earlier[number] = grams
            index.insert(number, sketch)
    return out


def contains_phrase(phrases: Sequence[Sequence[str]], corpus: Iterable[str]) -> list[bool]:
    """Whether any of an item's phrases occurs in the text, up to white space and case."""
    hits = [False] * len(phrases)
    normalised = [[" ".join(forms.folded(p.lower()).split()) for p in group] for group in phrases]
    for document in corpus:
        text = " ".join(forms.folded(document.lower()).split())
        for i, group in enumerate(normalised):
            hits[i] = hits[i] or any(re.search(forms.whole(re.escape(p)), text) for p in group)
    return hits


def keep_probability(score: ArrayLike, alpha: float = 9.0) -> NDArray[np.float64]:
    """Probability of keeping a document of quality s in [0, 1]: `(2 - s)^-alpha = P(Lomax(alpha) > 1 - s)`."""
    return np.asarray(2.0 - np.asarray(score, dtype=float)) ** -alpha


def quality_filter(scores: ArrayLike, seed: int = 0, alpha: float = 9.0) -> NDArray[np.bool_]:
    """Which documents to keep, by a classifier's scores in [0, 1]: those with `pareto(alpha) > 1 - score`."""
    return drawn(scores, np.random.default_rng([seed, 61]), alpha)


def drawn(scores: ArrayLike, rng: np.random.Generator, alpha: float = 9.0) -> NDArray[np.bool_]:
    """As `quality_filter`, with a generator carried on from the documents before."""
    s = np.asarray(scores, dtype=float)
    return np.asarray(rng.pareto(alpha, s.shape) > 1 - s)


def _grams(text: Sequence[str], n: int) -> set[Gram]:
    return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


def _spans(document: str) -> Iterator[tuple[int, int]]:
    """Yield the character span of each of `words(document)`."""
    for match in re.finditer(r"\S+", document):
        run = match.group()
        if len(parts := words(run)) == 1:
            yield match.span()
        elif parts:  # a script without spaces: letter by letter, each up to the next
            letters = [i for i, c in enumerate(run) if words(c)]
            starts = [i for before, i in itertools.pairwise(letters) if forms.alone(run[i]) or forms.alone(run[before])]
            for start, end in itertools.pairwise([0, *starts, len(run)]):
                yield match.start() + start, match.start() + end


def _between(document: str, cuts: Sequence[tuple[int, int]]) -> list[str]:
    """The non-empty parts between the cuts."""
    edges = [0, *(edge for cut in cuts for edge in cut), len(document)]
    parts = [document[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [part for part in parts if part]


@functools.cache
def _punctuation() -> dict[int, None]:
    """A translation table that deletes everything Unicode calls punctuation or a symbol."""
    return {c: None for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] in "PS"}
