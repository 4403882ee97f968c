"""Results of a pipeline's stages in a folder: to be inspected, and to resume the same run from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from didact import files, registry, untrusted
from didact.types import UserError

T = TypeVar("T")
IDENTITY = "run.json"


class Stages:
    """A folder of JSONL files, one per stage; with an empty name nothing is stored.

    Raises:
        UserError: the folder holds the stages of another run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder) if folder else None
        identity = {k: v for k, v in registry.identity().items() if k != "source"}
        if self.folder is not None:
            place = self.folder / IDENTITY
            if place.exists() and files.read_json(place) != identity:
                raise UserError(f"{folder} holds the stages of another run: choose another folder, or remove it")
            if not place.exists():
                files.write_json(place, identity)

    def of(self, name: str, kind: type[T], make: Callable[[], Sequence[T]]) -> list[T]:
        """The rows of a stage: read if it is stored, else computed and stored.

        Args:
            name: name of the file.
            kind: dataclass of a row.
            make: computes the rows.
        """
        place = self._place(name)
        if place is not None and place.exists():
            try:
                return [kind(**row) for row in files.read_lines(place)]
            except TypeError as error:
                raise UserError(f"{place}: not rows of this stage: {error}; {files.MEND}") from None
        rows = list(make())
        self.write(name, (dataclasses.asdict(row) for row in rows))  # type: ignore[call-overload]  # a row is one
        return rows

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store a stage that is not resumed from."""
        if (place := self._place(name)) is not None:
            files.write_lines(place, untrusted.cleaned([dict(row) for row in rows]))

    def _place(self, name: str) -> Path | None:
        return self.folder / f"{name}.jsonl" if self.folder else None
