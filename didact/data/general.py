"""General text: a little prose, facts, code and dialogue of our own, to see what training broke and to mix into it.

What is measured on and what is trained on are different texts, so that replay does not flatter. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from didact.data import contamination
from didact.data.read import read
from didact.types import Messages, Record, Text, UserError

FILE = Path(__file__).with_name("general.jsonl")
PHRASE = 3  # words of a record that is too short for n-grams, from which its standing in a text is no chance


def texts(path: str | None, use: Literal["keep", "replay"]) -> list[str]:
    """The texts of a file of one's own, else the embedded ones that are for measuring (`keep`) or for training.

    Raises:
        UserError: the file cannot be read, or holds no text.
    """
    if path:
        return [record.text for record in read(path, Text) if record.text.strip()]
    rows = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())
    return [row["text"] for row in rows if row["for"] == use]


def apart(path: str | None, records: Iterable[Record], measured: Sequence[str]) -> None:
    """Refuse to replay text that is tested, or that is measured as general text.

    Args:
        path: the file that is replayed; None for the embedded texts.
        records: that are tested.
        measured: texts that retention is measured on.

    Raises:
        UserError: a record, or a measured text, stands in what is replayed.
    """
    name, replayed = f"--replay-from {path}" if path else "--replay", texts(path, "replay")
    for what, items in (("tested records", [_said(r) for r in records]), ("texts of --retention", list(measured))):
        said = [f" {' '.join(contamination.words(text))} " for text in replayed]
        audit = contamination.audit(items, replayed)
        found = [bool(dirty) or _stands(item, audit.n, said) for item, dirty in zip(items, audit.dirty, strict=True)]
        if any(found):
            raise UserError(
                f"{name}: holds {sum(found)} of {len(items)} {what} (as {items[found.index(True)][:60]!r}): "
                "what is trained on cannot be tested"
            )


def _stands(item: str, n: int, said: Sequence[str]) -> bool:
    """Whether a record with fewer words than an n-gram stands in a text as a whole."""
    own = contamination.words(item)
    return PHRASE <= len(own) < n and any(f" {' '.join(own)} " in text for text in said)


def _said(record: Record) -> str:
    """What a record says, field after field."""
    values = (getattr(record, f.name) for f in dataclasses.fields(record))
    return " ".join(str(v) for v in values if isinstance(v, str | Messages))
