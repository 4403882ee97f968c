"""Reference material on a language, and its choice for a sentence: words, sentence pairs, passages of a book. Pure.

Entries are looked up word by word, by the longest common substring (`retrieval.Substrings`).
Source: Tanzer et al. 2023, arXiv:2309.16575 (which says subsequence, and takes substrings).
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from didact.data import contamination, retrieval, translation, words
from didact.types import Parallel

Material = Literal["wordlist", "pairs", "passages", "explanations", "book"]
LETTERS: dict[str, Material] = {"W": "wordlist", "S": "pairs", "G": "passages", "E": "explanations", "B": "book"}
By = Literal["lcs", "bm25", "embedding"]
STRIPPED = re.compile(r"[.,]")
CANARY = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|canary.*(?:guid|string)", re.IGNORECASE)
MARK = "big-bench-canary"  # a field that marks records that are not data
SHORTEST = 3  # fewest words of a sentence that is cut out of a book: shorter ones are phrases


def lookup_words(sentence: str) -> list[str]:
    """The words to look up: split at blanks, without full stops and commas; scripts without blanks letter by letter."""
    plain = STRIPPED.sub("", sentence.strip())
    return words.tokens(plain) if any(map(words.alone, plain)) else plain.split()


class Lookup:
    """Finds the nearest texts to a query, best first, ties in order; results are cached.

    Args:
        texts: the texts to search.
        by: lcs, bm25, or embedding.
        embedder: for `embedding`.
        case: whether matching is case-sensitive.
    """

    def __init__(
        self, texts: Sequence[str], by: By = "lcs", embedder: retrieval.Embedder | None = None, case: bool = False
    ) -> None:
        self.size, self.case, self._cache = len(texts), case, dict[tuple[str, int], list[int]]()
        self.texts, self.by, self.embedder = texts, by, embedder

    @functools.cached_property
    def nearest(self) -> Callable[[Sequence[str], int], retrieval.Hits]:
        """The search for the k nearest texts of every query; the index is built on first use."""
        pool = [self._flat(t) for t in self.texts]
        if self.by != "embedding" or self.embedder is None:
            return (retrieval.BM25 if self.by == "bm25" else retrieval.Substrings)(pool).nearest
        embedder, vectors = self.embedder, retrieval.embedded(self.embedder, pool)
        return lambda queries, k: retrieval.nearest(retrieval.embedded(embedder, queries), vectors, k)

    def __call__(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """Indices of the k nearest texts of every query, without those that have nothing in common with it."""
        normalised = [self._flat(q) for q in queries]
        if new := [q for q in dict.fromkeys(normalised) if (q, k) not in self._cache]:
            hits = self.nearest(new, k)
            for query, places, scores in zip(new, *hits, strict=True):
                self._cache[query, k] = [int(i) for i, s in zip(places, scores, strict=True) if i >= 0 and s > 0]
        return [self._cache[q, k] for q in normalised]

    def _flat(self, text: str) -> str:
        text = " ".join(words.folded(text).split())
        return text if self.case else text.casefold()


def chunks(sizes: Sequence[int], size: int, overlap: int) -> list[tuple[int, int]]:
    """Windows over units of these token counts: at most `size` tokens each, starting `size - overlap` tokens after the
    previous start; the first window that reaches the end is the last."""
    starts = [0]
    for n in sizes:
        starts.append(starts[-1] + n)
    out: list[tuple[int, int]] = []
    first = 0
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and starts[last + 1] - starts[first] <= size:
            last += 1
        out.append((first, last))
        if last == len(sizes):
            break
        target = starts[first] + size - overlap
        first = max(first + 1, next(i for i in range(first + 1, last + 1) if starts[i] >= target or i == last))
    return out


class Block(NamedTuple):
    """A part of a prompt: its kind of material and its text."""

    material: Material
    text: str


@dataclass(frozen=True)
class Materials:
    """All material on a language, for one direction of translation.

    Args:
        source: the language that is translated from.
        target: the language that is translated to.
        wordlist: words and their translations; `pos` in `extra` is shown.
        pairs: sentences and their translations.
        passages: passages of the book.
        explanations: passages of the book without the sentences of `pairs`.
        book: the whole book.
        case: whether words are looked up case-sensitively.
        finders: lookups by kind of material; by substrings where there is none.
    """

    source: str
    target: str
    wordlist: Sequence[Parallel] = ()
    pairs: Sequence[Parallel] = ()
    passages: Sequence[str] = ()
    explanations: Sequence[str] = ()
    book: str = ""
    case: bool = False
    finders: Mapping[str, Lookup] = field(default_factory=dict, compare=False)

    def back(self) -> Materials:
        """The same material for the other direction."""
        turned = [[turn(p) for p in some] for some in (self.wordlist, self.pairs)]
        return replace(self, source=self.target, target=self.source, wordlist=turned[0], pairs=turned[1])

    @property
    def available(self) -> list[Material]:
        """The kinds of material that are not empty."""
        return [m for m in LETTERS.values() if getattr(self, m)]

    @functools.cached_property
    def lookups(self) -> dict[str, Lookup]:
        """The lookup of each kind of material."""
        keys: dict[str, Sequence[str]] = {m: [p.source for p in getattr(self, m)] for m in ("wordlist", "pairs")}
        keys |= {"passages": self.passages, "explanations": self.explanations}
        return {m: self.finders.get(m) or Lookup(texts, case=self.case) for m, texts in keys.items() if texts}

    def blocks(
        self, sentence: str, used: Sequence[Material], words_each: int, pairs_each: int, passages: int, once: bool
    ) -> list[Block]:
        """The blocks shown for a sentence, in order: entries for every word, pairs for every word, passages.

        Args:
            sentence: the sentence to translate.
            used: kinds of material to use.
            words_each: number of entries per word.
            pairs_each: number of sentence pairs per word.
            passages: number of passages.
            once: drop repeated blocks.
        """
        out: list[Block] = []
        counts: dict[Material, int] = {"wordlist": words_each, "pairs": pairs_each}
        counts |= {"passages": passages, "explanations": passages}
        for material, k in counts.items():
            if material not in used or material not in self.lookups:
                continue
            queries = lookup_words(sentence) if material in ("wordlist", "pairs") else [sentence]
            places = [i for some in self.lookups[material](queries, k) for i in some]
            out += [Block(material, self._text(material, i)) for i in places]
        return list(dict.fromkeys(out)) if once else out

    def _text(self, material: Material, at: int) -> str:
        item: Any = getattr(self, material)[at]
        return self._entry(item) if material == "wordlist" else self._pair(item) if material == "pairs" else item

    def _entry(self, pair: Parallel) -> str:
        pos = pair.extra.get("pos")
        return f"- {pair.source}{f' ({pos})' if pos else ''} = {pair.target}"

    def _pair(self, pair: Parallel) -> str:
        return f"{self.source}: {pair.source}\n{self.target}: {pair.target}"


def prompt(of: Materials, sentence: str, blocks: Sequence[Block], book: str = "") -> str:
    """Build a prompt: first the book, which is the same for all sentences; then the task, the blocks, and again the
    sentence with its translation to follow. Without any material it is the plain prompt."""
    query = translation.build_prompt(sentence, of.source, of.target)
    if not blocks and not book:
        return query
    heads = {
        "wordlist": f"Entries of the {of.source}-{of.target} dictionary:",
        "pairs": f"Sentences in {of.source} and {of.target}:",
        "passages": "From a grammar:",
        "explanations": "From a grammar:",
    }
    task = f"Translate this sentence from {of.source} to {of.target}: {translation.one_line(sentence)}"
    parts = [f"A grammar:\n{book}", task] if book else [task]
    for name, head in heads.items():
        if entries := [b.text for b in blocks if b.material == name]:
            parts.append("\n".join([head, *(entries if name == "wordlist" else [f"---\n{t}" for t in entries])]))
    return "\n\n".join([*parts, query])


def turn(pair: Parallel) -> Parallel:
    """Swap the languages of a pair."""
    return Parallel(
        source=pair.target, target=pair.source, source_lang=pair.target_lang, target_lang=pair.source_lang,
        extra=pair.extra,
    )  # fmt: skip


def back_to_front(record: Parallel, names: tuple[str, str]) -> bool:
    """Whether a record's languages say that it goes from the second language to the first."""
    return names[0] != names[1] and (record.source_lang == names[1] or record.target_lang == names[0])


def ways(
    test: Sequence[Parallel], names: tuple[str, str], direction: Literal["given", "back", "both"]
) -> dict[str, list[Parallel]]:
    """Test items translated `forward`, from the first language to the second, and `back`: in the direction of the
    records, the other one, or both."""
    out: dict[str, list[Parallel]] = {"forward": [], "back": []}
    for record in test:
        way = "back" if back_to_front(record, names) else "forward"
        opposite = "forward" if way == "back" else "back"
        if direction != "back":
            out[way].append(record)
        if direction != "given":
            out[opposite].append(turn(record))
    return {way: items for way, items in out.items() if items}


def facing(records: Sequence[Parallel], names: tuple[str, str]) -> list[Parallel]:
    """Turn all records to go from the first language to the second."""
    return [turn(p) if back_to_front(p, names) else p for p in records]


def without_test(pairs: Sequence[Parallel], test: Sequence[Parallel]) -> list[Parallel]:
    """Drop canaries and pairs with a side that is a sentence of the test; single words do not count as sentences."""
    held = {_flat(side) for p in test for side in (p.source, p.target) if len(side.split()) > 1}
    return [p for p in pairs if MARK not in p.extra and not {_flat(p.source), _flat(p.target)} & held]


def cleaned(book: str, held: Sequence[Parallel], canary: str = "") -> tuple[str, int]:
    """Remove lines with a canary and the sentences of `held` (in either language, also across lines) from a book;
    also return the number of places removed."""
    lines = book.splitlines()
    clean = [line for line in lines if not (CANARY.search(line) or (canary and canary in line))]
    text, removed = "\n".join(clean), len(lines) - len(clean)
    sizes: dict[int, list[str]] = defaultdict(list)
    for side in dict.fromkeys(side for p in held for side in (p.source, p.target)):
        sizes[len(contamination.words(side))].append(side)
    for n, sentences in sizes.items():
        if n >= SHORTEST:
            removal = contamination.remove(
                [text], sentences, n=n, window=0, shortest=1, most_pieces=len(text) + 1, common=len(text) + 1
            )
            text, removed = "\n".join(removal.pieces), removed + removal.collisions
    return text, removed


def word_by_word(of: Materials, sentence: str) -> str:
    """The baseline: replace every word by its exact entry, in order; words without one are copied."""
    entries: dict[str, str] = {}
    for p in of.wordlist:
        entries.setdefault(_flat(p.source), p.target)
    return " ".join(entries.get(_flat(w), w) for w in lookup_words(sentence))


def _flat(text: str) -> str:
    """Words in lower case, joined by single blanks."""
    return " ".join(w.casefold() for w in words.words(text))
