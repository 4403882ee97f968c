"""Search: questions in, documents out, by an engine or a function of the user's; and the same again, from a file.

A search is `search(questions, most) -> documents of each`, a list of `Passage`s. Imports no torch.
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
    as SearXNG does. `lost` counts what could not be had, by reason."""

    address: str
    web: Web
    lost: dict[str, int] = field(default_factory=dict)

    def __call__(self, questions: Sequence[str], most: int) -> list[list[Passage]]:
        """Documents of each question; none where the engine fails, which is counted.

        Raises:
            UserError: it answers none of them.
        """
        place = self.address if urlsplit(self.address).path.strip("/") else f"{self.address.rstrip('/')}/search"
        params = [{"q": q, "format": "json"} for q in questions]
        answers = pages.get([place] * len(questions), self.web, params, trusted=True)
        out, whys = [], []
        for got in answers:
            rows, why = (None, got.why) if got.why else (_results(got.data), "no JSON with results")
            out.append([p for row in rows or () if (p := _passage(row)) is not None][:most])
            if rows is None:
                whys.append(why)
                self._count({f"search: {why}": 1})
        if questions and len(whys) == len(questions):
            raise UserError(f"{self.address}: the search engine answers no question: {whys[0]}")
        return [self._read(found) for found in out] if self.web.pages else out

    def _read(self, found: Sequence[Passage]) -> list[Passage]:
        read, lost = pages.fetched(found, self.web)
        self._count({f"page: {why}": n for why, n in lost.items()})
        return read

    def _count(self, lost: Mapping[str, int]) -> None:
        for why, n in lost.items():
            self.lost[why] = self.lost.get(why, 0) + n


def checked(function: Callable[..., Any], name: str) -> Search:
    """A user's function of questions and a number, whose documents are texts, `Passage`s or `{"text", "url", "title"}`.

    Raises (when called):
        UserError: it raised, or gave something else.
    """

    def search(questions: Sequence[str], most: int) -> list[list[Passage]]:
        try:
            given = [list(found) for found in function(list(questions), most)]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"search '{name}' raised {type(error).__name__}: {error}") from error
        if len(given) != len(questions):
            raise UserError(f"search '{name}' gave {len(given)} lists for {len(questions)} questions")
        out = [[_passage({"text": d} if isinstance(d, str) else d) for d in found][:most] for found in given]
        if (bad := next((i for i, found in enumerate(out) if None in found), None)) is not None:
            raise UserError(f"search '{name}': a document of question {bad + 1} has no text: {given[bad][0]!r:.80}")
        return [[p for p in found if p is not None] for found in out]

    return search


class Frozen:
    """The same search, which writes what it finds to a file; where the file is there, it is read and `search` unused.

    What a run that was killed has found stands in `path.part`, and is not searched again.
    """

    def __init__(self, search: Search, path: str) -> None:
        self.search, self.place, self.part = search, Path(path), Path(f"{path}.part")
        self.whole = self.place.exists()
        there = self.place if self.whole else self.part
        self.known = _known(there) if there.exists() else {}

    def __call__(self, questions: Sequence[str], most: int) -> list[list[Passage]]:
        """Documents of each question, searched once.

        Raises:
            UserError: the file is there and has no search for a question.
        """
        missing = list(dict.fromkeys(q for q in questions if q not in self.known))
        if missing and self.whole:
            raise UserError(f"{self.place} holds no search for {missing[0]!r:.80}: remove the file to search anew")
        if missing:
            self.known.update(zip(missing, self.search(missing, most), strict=True))
            rows = [{"question": q, "results": [as_row(p) for p in found]} for q, found in self.known.items()]
            files.write_lines(self.part, untrusted.cleaned(rows))
        return [self.known[q][:most] for q in questions]

    def freeze(self) -> None:
        """Say that the file is whole: the next run replays it."""
        if self.part.exists():
            self.part.replace(self.place)


def _known(place: Path) -> dict[str, list[Passage]]:
    out = {}
    for number, row in enumerate(files.read_lines(place), 1):
        found = row.get("results") if isinstance(row, dict) else None
        read = [_passage(r) for r in found] if isinstance(found, list) else [None]
        if None in read or not isinstance(row.get("question"), str):
            raise UserError(f'{place}, line {number}: {{"question": ..., "results": [{{"text": ...}}]}} is expected')
        out[row["question"]] = [p for p in read if p is not None]
    return out


def _results(data: bytes) -> list[Any] | None:
    """The results in an engine's answer; None where it is something else."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    found = told.get("results") if isinstance(told, dict) else None
    return found if isinstance(found, list) else None


def _passage(row: Any) -> Passage | None:
    """A document as an engine or a user gives it; None where it has no text."""
    if isinstance(row, Passage):
        return row
    if not isinstance(row, Mapping):
        return None
    text = row.get("text", row.get("content", ""))
    if not isinstance(text, str) or ("text" in row and not text.strip()):
        return None
    named = {name: row[name] for name in ("url", "title") if isinstance(row.get(name), str)}
    date = row.get("date", row.get("publishedDate"))
    return Passage(text=text, **named, extra={"date": date} if isinstance(date, str) else {})
