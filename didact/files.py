"""Writing so that a kill or a full disk never leaves half a file under its final name."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as strict JSON has it: NaN and infinities become null, tuples lists, paths strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, str | int | bool) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return str(value)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed onto `path` when the block ends well, else removed."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with open(beside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, final)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` to fill; takes its place when the block ends well, else is removed."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    for moved in final.parent.glob(f".{final.name}.*.old.tmp"):
        if not final.exists():  # killed between the two renames below: the version before is whole
            os.replace(moved, final)
    sweep(final.parent, final.name)
    beside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    old = final.with_name(f".{final.name}.{os.getpid()}.old.tmp")
    beside.mkdir()
    try:
        yield beside
        for name in beside.rglob("*"):
            if name.is_file():
                with open(name, "rb") as handle:
                    os.fsync(handle.fileno())
        if final.exists():
            os.replace(final, old)
        os.replace(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def claimed(path: str | Path) -> Iterator[bool]:
    """Whether this process alone may make `path` now; a claim ends with the block, or with the process."""
    beside = Path(path).with_name(f".{Path(path).name}.claim")
    with open(beside, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def sweep(folder: str | Path, name: str = "") -> None:
    """Remove what killed writers left of `name` (or of anything) in `folder`."""
    for stray in Path(folder).glob(f".{name or '*'}.*.tmp"):
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as strict, indented JSON, in one step."""
    with new_file(path) as beside:
        beside.write_text(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """One JSON object a line, in one step."""
    with new_file(path) as beside, open(beside, "w") as handle:
        for row in rows:
            handle.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file."""
    return json.loads(Path(path).read_text())


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content, or of the names and contents of the files in a folder."""
    place, out = Path(path), hashlib.sha256()
    for part in sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]:
        out.update(part.name.encode() if part != place else b"")
        with open(part, "rb") as handle:
            out.update(hashlib.file_digest(handle, "sha256").digest())
    return out.hexdigest()
