"""Split documents into paragraphs for retrieval: some sentences each, without what is not prose. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from didact import untrusted
from didact.data import spans
from didact.types import Passage


def cut(text: str, sentences: int = 6) -> list[str]:
    """Split a text into paragraphs of `sentences` sentences, the last possibly shorter; each is one line."""
    parts = [clean for s in spans.sentences(text) if (clean := untrusted.prose(s))]
    return [" ".join(parts[i : i + sentences]) for i in range(0, len(parts), sentences)]


def of(documents: Iterable[Passage], sentences: int = 6) -> list[Passage]:
    """Paragraphs of documents, each with its document's title and address, without duplicates."""
    out: dict[str, Passage] = {}
    for document in documents:
        for text in cut(document.text, sentences):
            out.setdefault(text, Passage(text=text, title=document.title, url=document.url, extra=document.extra))
    return list(out.values())


def leaking_pages(paragraphs: Sequence[Passage], question: str, answers: Sequence[str], shortest: int = 5) -> set[str]:
    """Addresses (or texts, without one) of pages that contain a question of at least `shortest` words and its answer:
    such a page may be the test itself."""
    query = _flat(question)
    if len(query.split()) < shortest:
        return set()
    pages: dict[str, str] = {}
    for p in paragraphs:
        name = p.url or p.text
        pages[name] = f"{pages.get(name, '')} {_flat(p.text)} "
    return {
        name for name, text in pages.items() if query in text and any(f" {_flat(a)} " in text for a in answers if a)
    }


def _flat(text: str) -> str:
    """Words in lower case, joined by single blanks."""
    return " ".join(m[0].lower() for m in spans.WORD.finditer(text))
