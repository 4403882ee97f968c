"""Evidence for questions: documents from a search or the user's own, as the paragraphs nearest to each question."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from didact.data import paragraphs, retrieval
from didact.infer import addresses, functions
from didact.tools import search as searching
from didact.tools.pages import Web
from didact.types import Demo, Passage, UserError

Ranker = Literal["tfidf", "bm25"]


@dataclass(frozen=True)
class Evidence:
    """Paragraphs for one question, the nearest first, and how near they are."""

    passages: list[Passage]
    scores: list[float]


@dataclass
class Library:
    """Where evidence comes from.

    Args:
        search: finds documents for every question; None where `passages` are all there is.
        passages: the user's documents.
        documents: for a question, at most.
        sentences: of a paragraph.
        count: paragraphs for a question, at most.
        ranker: what "near" is: cosine of TF-IDF vectors, or BM25.
        until: no documents of a later date.
        keep_leaks: whether documents of a search in which an item stands with its answer are kept; `leaks` counts them.
    """

    search: searching.Search | None
    passages: Sequence[Passage] = ()
    documents: int = 20
    sentences: int = 6
    count: int = 50
    ranker: Ranker = "tfidf"
    until: str = ""
    keep_leaks: bool = False
    leaks: int = 0

    def __call__(self, items: Sequence[Demo]) -> list[Evidence]:
        """Evidence for every item's prompt, of its own documents alone; none that may be the test itself."""
        questions = [item.prompt for item in items]
        if self.search is None:
            near = self._nearest(questions, self._own)
        else:
            found = self.search(questions, self.documents)
            parts = [paragraphs.of(filter(self._known_then, documents), self.sentences) for documents in found]
            near = [self._nearest([q], some)[0] for q, some in zip(questions, parts, strict=True)]
        return [self._apart(item, evidence) for item, evidence in zip(items, near, strict=True)]

    @property
    def keeps_leaks(self) -> bool:
        """Whether they are kept; the user's own documents are: questions with answers may be what they are for."""
        return self.keep_leaks or self.search is None

    @functools.cached_property
    def _own(self) -> list[Passage]:
        return paragraphs.of(filter(self._known_then, self.passages), self.sentences)

    @functools.cached_property
    def _find(self) -> Callable[[Sequence[str], int], retrieval.Hits]:
        return nearest(self.ranker, [p.text for p in self._own])

    def freeze(self) -> None:
        """Write what was searched, where it is to be replayed."""
        if isinstance(self.search, searching.Frozen):
            self.search.freeze()

    @property
    def lost(self) -> dict[str, int]:
        """Pages and searches that failed, by reason."""
        inner = self.search.search if isinstance(self.search, searching.Frozen) else self.search
        return dict(inner.lost) if isinstance(inner, searching.Engine) else {}

    def _apart(self, item: Demo, near: Evidence) -> Evidence:
        told = paragraphs.telling(near.passages, item.prompt, item.answers or [item.completion])
        self.leaks += len(told)
        if self.keeps_leaks or not told:
            return near
        kept = [(p, s) for p, s in zip(near.passages, near.scores, strict=True) if (p.url or p.text) not in told]
        return Evidence([p for p, _ in kept], [s for _, s in kept])

    def _known_then(self, passage: Passage) -> bool:
        return not self.until or str(passage.extra.get("date", "")) <= self.until

    def _nearest(self, questions: Sequence[str], parts: Sequence[Passage]) -> list[Evidence]:
        """A paragraph that shares no word with a question is evidence only where none does."""
        if not parts:
            return [Evidence([], []) for _ in questions]
        find = self._find if parts is self._own else nearest(self.ranker, [p.text for p in parts])
        near = find(questions, self.count)
        out = []
        for index, score in zip(near.positions, near.scores, strict=True):
            found = [(parts[i], float(s)) for i, s in zip(index, score, strict=True) if i != retrieval.NONE]
            kept = [pair for pair in found if pair[1] > 0] or found
            out.append(Evidence([p for p, _ in kept], [s for _, s in kept]))
        return out


def nearest(ranker: Ranker, texts: Sequence[str]) -> Callable[[Sequence[str], int], retrieval.Hits]:
    """`find(questions, k)` among texts."""
    if ranker == "bm25":
        return retrieval.BM25(texts).nearest
    vectors = retrieval.TfIdf(texts)
    pool = retrieval.embedded(vectors, texts)
    return lambda questions, k: retrieval.nearest(retrieval.embedded(vectors, questions), pool, k)


def opened(search: str | searching.Search, passages: Sequence[Passage] | None, web: Web) -> searching.Search | None:
    """A search by its address (`http://host:port`) or as `module:function`; None where passages are to be searched.

    Raises:
        UserError: there is none of these, or both.
    """
    if not search:
        if not passages:
            raise UserError("nothing to search: give --passages FILE, or --search ADDRESS or module:function")
        return None
    if passages:
        raise UserError("give either passages or search: one of the two is looked in")
    found: searching.Search
    if not isinstance(search, str):
        found = searching.checked(search, getattr(search, "__name__", "function"))
    elif addresses.is_address(search):
        addresses.check_address(search)
        found = searching.Engine(search, web)
    else:
        found = searching.checked(functions.imported(search, "search"), search)
    return searching.Frozen(found, web.frozen) if web.frozen else found
