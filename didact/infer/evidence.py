"""Evidence for questions: the nearest paragraphs of documents from a search engine or of the user's own."""

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
    """Paragraphs for one question, the nearest first, and their similarities."""

    passages: list[Passage]
    scores: list[float]


@dataclass
class Library:
    """Retrieves evidence from a search engine, or from the user's passages.

    Args:
        search: finds documents for every question; None to use `passages` only.
        passages: the user's documents.
        documents: most documents of a question.
        sentences: of a paragraph.
        count: most paragraphs of a question.
        ranker: ranks paragraphs by cosine of TF-IDF vectors, or by BM25.
        until: drop documents of a later date.
        keep_leaks: keep documents of a search that contain an item together with its answer; `leaks` counts them.
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
        """Return evidence for every item's prompt, from its own search results or from all passages, without leaks."""
        questions = [item.prompt for item in items]
        if self.search is None:
            evidence = self._nearest(questions, self._own)
        else:
            results = self.search(questions, self.documents)
            pools = [paragraphs.of(filter(self._in_time, documents), self.sentences) for documents in results]
            evidence = [self._nearest([q], pool)[0] for q, pool in zip(questions, pools, strict=True)]
        return [self._without_leaks(item, near) for item, near in zip(items, evidence, strict=True)]

    @property
    def keeps_leaks(self) -> bool:
        """Whether leaks are kept: always in the user's own documents, where questions with answers may be intended."""
        return self.keep_leaks or self.search is None

    @functools.cached_property
    def _own(self) -> list[Passage]:
        return paragraphs.of(filter(self._in_time, self.passages), self.sentences)

    @functools.cached_property
    def _find(self) -> Callable[[Sequence[str], int], retrieval.Hits]:
        return nearest(self.ranker, [p.text for p in self._own])

    def freeze(self) -> None:
        """Write the search results to the file they are to be replayed from, if there is one."""
        if isinstance(self.search, searching.Frozen):
            self.search.freeze()

    @property
    def lost(self) -> dict[str, int]:
        """Numbers of failed pages and searches, by reason."""
        inner = self.search.search if isinstance(self.search, searching.Frozen) else self.search
        return dict(inner.lost) if isinstance(inner, searching.Engine) else {}

    def _without_leaks(self, item: Demo, near: Evidence) -> Evidence:
        leaks = paragraphs.leaking_pages(near.passages, item.prompt, item.answers or [item.completion])
        self.leaks += len(leaks)
        if self.keeps_leaks or not leaks:
            return near
        clean = [(p, s) for p, s in zip(near.passages, near.scores, strict=True) if (p.url or p.text) not in leaks]
        return Evidence([p for p, _ in clean], [s for _, s in clean])

    def _in_time(self, passage: Passage) -> bool:
        return not self.until or str(passage.extra.get("date", "")) <= self.until

    def _nearest(self, questions: Sequence[str], passages: Sequence[Passage]) -> list[Evidence]:
        """Return the nearest passages of every question; those of score 0 only where no other is found."""
        if not passages:
            return [Evidence([], []) for _ in questions]
        find = self._find if passages is self._own else nearest(self.ranker, [p.text for p in passages])
        hits = find(questions, self.count)
        out = []
        for indices, scores in zip(hits.positions, hits.scores, strict=True):
            pairs = [(passages[i], float(s)) for i, s in zip(indices, scores, strict=True) if i != retrieval.NONE]
            relevant = [pair for pair in pairs if pair[1] > 0] or pairs
            out.append(Evidence([p for p, _ in relevant], [s for _, s in relevant]))
        return out


def nearest(ranker: Ranker, texts: Sequence[str]) -> Callable[[Sequence[str], int], retrieval.Hits]:
    """Return a function `find(questions, k)` that searches these texts."""
    if ranker == "bm25":
        return retrieval.BM25(texts).nearest
    vectors = retrieval.TfIdf(texts)
    matrix = retrieval.embedded(vectors, texts)
    return lambda questions, k: retrieval.nearest(retrieval.embedded(vectors, questions), matrix, k)


def open_library(
    search: str | searching.Search, passages: Sequence[Passage] | None, web: Web
) -> searching.Search | None:
    """Open a search by its address (`http://host:port`) or as `module:function`; None where passages are given instead.

    Raises:
        UserError: neither or both are given.
    """
    if not search:
        if not passages:
            raise UserError("nothing to search: give --passages FILE, or --search ADDRESS or module:function")
        return None
    if passages:
        raise UserError("give either passages or search, not both")
    engine: searching.Search
    if not isinstance(search, str):
        engine = searching.checked(search, getattr(search, "__name__", "function"))
    elif addresses.is_address(search):
        addresses.check_address(search)
        engine = searching.Engine(search, web)
    else:
        engine = searching.checked(functions.import_function(search, "search"), search)
    return searching.Frozen(engine, web.frozen) if web.frozen else engine
