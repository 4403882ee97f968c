"""General text: a little embedded prose, facts, code and dialogue, to measure retention on and to replay in training.

The two uses have different texts, so that replay does not inflate the measured retention. Imports no torch.
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
PHRASE = 3  # fewest words of a record too short for n-grams whose occurrence in a text is no coincidence


def texts(path: str | None, use: Literal["keep", "replay"]) -> list[str]:
    """The texts of the user's file, else the embedded ones for measuring (`keep`) or for training (`replay`).

    Raises:
        UserError: the file cannot be read, or holds no text.
    """
    if path:
        return [record.text for record in read(path, Text) if record.text.strip()]
    rows = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())
    return [row["text"] for row in rows if row["for"] == use]


def check_no_leak(path: str | None, records: Iterable[Record], measured: Sequence[str]) -> None:
    """Refuse to replay text that is tested on, or on which retention is measured.

    Args:
        path: the replayed file; None for the embedded texts.
        records: the tested records.
        measured: the texts on which retention is measured.

    Raises:
        UserError: a record or a measured text occurs in the replayed text.
    """
    name, replayed = f"--replay-from {path}" if path else "--replay", texts(path, "replay")
    for kind, items in (("tested records", [_text_of(r) for r in records]), ("texts of --retention", list(measured))):
        plain = [f" {' '.join(contamination.words(text))} " for text in replayed]
        audit = contamination.audit(items, replayed)
        leaked = [bool(dirty) or _occurs(item, audit.n, plain) for item, dirty in zip(items, audit.dirty, strict=True)]
        if any(leaked):
            raise UserError(
                f"{name}: holds {sum(leaked)} of {len(items)} {kind} (e.g. {items[leaked.index(True)][:60]!r}): "
                "what is trained on cannot be tested"
            )


def _occurs(item: str, n: int, corpus: Sequence[str]) -> bool:
    """Whether a record with fewer words than an n-gram occurs whole in a text."""
    own = contamination.words(item)
    return PHRASE <= len(own) < n and any(f" {' '.join(own)} " in text for text in corpus)


def _text_of(record: Record) -> str:
    """The text fields of a record, joined."""
    values = (getattr(record, f.name) for f in dataclasses.fields(record))
    return " ".join(str(v) for v in values if isinstance(v, str | Messages))
