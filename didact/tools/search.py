"""Search for documents with an engine or a function of the user's, and replay searches from a file.

A search is `search(questions, most)`: at most `most` documents (`Passage`s) for each question. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from didact import files, untrusted
from didact.tools import pages
from didact.tools.pages import Web
from didact.types import Passage, UserError, as_row

Search = Callable[[Sequence[str], int], list[list[Passage]]]


@dataclass
class Engine:
    """A search engine that answers `GET address?q=...&format=json` with `{"results": [{"url", "title", "content"}]}`,
    as SearXNG does. `lost` counts failed searches and pages, by reason."""

    address: str
    web: Web
    lost: dict[str, int] = field(default_factory=dict)

    def __call__(self, questions: Sequence[str], most: int) -> list[list[Passage]]:
        """Search for each question; no documents where the engine fails, which is counted.

        Raises:
            UserError: the engine fails for all questions.
        """
        url = self.address if urlsplit(self.address).path.strip("/") else f"{self.address.rstrip('/')}/search"
        params = [{"q": q, "format": "json"} for q in questions]
        answers = pages.get([url] * len(questions), self.web, params, trusted=True)
        out, failures = [], []
        for got in answers:
            rows, reason = (None, got.why) if got.why else (_results(got.data), "no JSON with results")
            out.append([p for row in rows or () if (p := _passage(row)) is not None][:most])
            if rows is None:
                failures.append(reason)
                self._count({f"search: {reason}": 1})
        if questions and len(failures) == len(questions):
            raise UserError(f"{self.address}: the search engine answers no question: {failures[0]}")
        return [self._read(passages) for passages in out] if self.web.pages else out

    def _read(self, results: Sequence[Passage]) -> list[Passage]:
        passages, lost = pages.fetch_passages(results, self.web)
        self._count({f"page: {reason}": n for reason, n in lost.items()})
        return passages

    def _count(self, lost: Mapping[str, int]) -> None:
        for reason, n in lost.items():
            self.lost[reason] = self.lost.get(reason, 0) + n


def checked(function: Callable[..., Any], name: str) -> Search:
    """Wrap a user's `function(questions, most)`, whose documents are texts, `Passage`s or `{"text", "url", "title"}`.

    Raises (when called):
        UserError: it raised, or returned something else.
    """

    def search(questions: Sequence[str], most: int) -> list[list[Passage]]:
        try:
            outputs = [list(documents) for documents in function(list(questions), most)]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"search '{name}' raised {type(error).__name__}: {error}") from error
        if len(outputs) != len(questions):
            raise UserError(f"search '{name}' gave {len(outputs)} lists for {len(questions)} questions")
        out = [[_passage({"text": d} if isinstance(d, str) else d) for d in documents][:most] for documents in outputs]
        if (invalid := next((i for i, documents in enumerate(out) if None in documents), None)) is not None:
            raise UserError(
                f"search '{name}': a document of question {invalid + 1} has no text: {outputs[invalid][0]!r:.80}"
            )
        return [[p for p in documents if p is not None] for documents in out]

    return search


class Frozen:
    """A search that writes its results to a file; if the file exists, results are read from it and `search` is unused.

    Results of a run that was killed are in `path.part` and are not searched again.
    """

    def __init__(self, search: Search, path: str) -> None:
        self.search, self.place, self.part = search, Path(path), Path(f"{path}.part")
        self.whole = self.place.exists()
        source = self.place if self.whole else self.part
        self.known = _load(source) if source.exists() else {}

    def __call__(self, questions: Sequence[str], most: int) -> list[list[Passage]]:
        """Documents of each question, searched once.

        Raises:
            UserError: the file exists and has no results for a question.
        """
        missing = list(dict.fromkeys(q for q in questions if q not in self.known))
        if missing and self.whole:
            raise UserError(f"{self.place} has no results for {missing[0]!r:.80}: delete the file to search again")
        if missing:
            self.known.update(zip(missing, self.search(missing, most), strict=True))
            rows = [{"question": q, "results": [as_row(p) for p in passages]} for q, passages in self.known.items()]
            files.write_lines(self.part, untrusted.cleaned(rows))
        return [self.known[q][:most] for q in questions]

    def freeze(self) -> None:
        """Mark the file as complete: the next run replays it."""
        if self.part.exists():
            self.part.replace(self.place)


def _load(place: Path) -> dict[str, list[Passage]]:
    out = {}
    for number, row in enumerate(files.read_lines(place), 1):
        results = row.get("results") if isinstance(row, dict) else None
        passages = [_passage(r) for r in results] if isinstance(results, list) else [None]
        if None in passages or not isinstance(row.get("question"), str):
            raise UserError(f'{place}, line {number}: {{"question": ..., "results": [{{"text": ...}}]}} is expected')
        out[row["question"]] = [p for p in passages if p is not None]
    return out


def _results(data: bytes) -> list[Any] | None:
    """The results in an engine's answer; None where it is something else."""
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        return None
    results = reply.get("results") if isinstance(reply, dict) else None
    return results if isinstance(results, list) else None


def _passage(row: Any) -> Passage | None:
    """Convert a document of an engine or a user; None where it has no text."""
    if isinstance(row, Passage):
        return row
    if not isinstance(row, Mapping):
        return None
    text = row.get("text", row.get("content", ""))
    if not isinstance(text, str) or ("text" in row and not text.strip()):
        return None
    fields = {name: row[name] for name in ("url", "title") if isinstance(row.get(name), str)}
    date = row.get("date", row.get("publishedDate"))
    return Passage(text=text, **fields, extra={"date": date} if isinstance(date, str) else {})
