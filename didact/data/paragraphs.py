"""Documents as paragraphs to look things up in: some sentences each, clean of what is no prose. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from didact import untrusted
from didact.data import spans
from didact.types import Passage


def cut(text: str, sentences: int = 6) -> list[str]:
    """A text in paragraphs of so many sentences, the last perhaps shorter; each is one line, whatever it holds."""
    parts = [clean for s in spans.sentences(text) if (clean := untrusted.prose(s))]
    return [" ".join(parts[i : i + sentences]) for i in range(0, len(parts), sentences)]


def of(documents: Iterable[Passage], sentences: int = 6) -> list[Passage]:
    """Paragraphs of documents, each with its document's title and address; one that is told twice comes once."""
    out: dict[str, Passage] = {}
    for document in documents:
        for text in cut(document.text, sentences):
            out.setdefault(text, Passage(text=text, title=document.title, url=document.url, extra=document.extra))
    return list(out.values())


def telling(paragraphs: Sequence[Passage], question: str, answers: Sequence[str], shortest: int = 5) -> set[str]:
    """Addresses (or texts, of what has none) where a question of at least `shortest` words stands with its answer:
    such a page may be the test itself."""
    asked = _flat(question)
    if len(asked.split()) < shortest:
        return set()
    whole: dict[str, str] = {}
    for p in paragraphs:
        name = p.url or p.text
        whole[name] = f"{whole.get(name, '')} {_flat(p.text)} "
    return {
        name for name, text in whole.items() if asked in text and any(f" {_flat(a)} " in text for a in answers if a)
    }


def _flat(text: str) -> str:
    """Words in lower case, one blank between two."""
    return " ".join(m[0].lower() for m in spans.WORD.finditer(text))
