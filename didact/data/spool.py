"""Rows on disk, written once and read in any order: for data that several passes read and memory does not hold."""

from __future__ import annotations

import array
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Spool:
    """`add(row)` returns a row's number, `spool[number]` the row; only the rows' offsets are in memory."""

    def __init__(self, path: str | Path) -> None:
        self._starts = array.array("Q")
        self._file = open(path, "w+b")  # noqa: SIM115  (as long as this object)

    def add(self, row: dict[str, Any]) -> int:
        """Append a row."""
        self._starts.append(self._file.seek(0, 2))
        self._file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        return len(self._starts) - 1

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        self._file.seek(self._starts[number])
        row: dict[str, Any] = json.loads(self._file.readline())
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))
