"""What is dear to compute and cannot change: tensors on disk, keyed by everything they depend on.

The folder is `DIDACT_CACHE` (`~/.cache/didact` by default; `off` keeps nothing).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from didact import files


def folder() -> Path | None:
    """Where caches live, or None where `DIDACT_CACHE=off`."""
    place = os.environ.get("DIDACT_CACHE", "~/.cache/didact")
    return None if place == "off" else Path(place).expanduser()


def place(kind: str, *parts: str | bytes) -> Path | None:
    """Where something of this kind is kept, named by the hash of its parts; None where caching is off."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    root = folder()
    return root / kind / digest.hexdigest()[:32] if root else None


@contextlib.contextmanager
def private() -> Iterator[None]:
    """A private, empty cache: what an earlier run left must not stand in for work that is measured."""
    with tempfile.TemporaryDirectory(prefix="didact-cache-") as fresh:
        before = os.environ.get("DIDACT_CACHE")
        os.environ["DIDACT_CACHE"] = fresh
        try:
            yield
        finally:
            if before is None:
                del os.environ["DIDACT_CACHE"]
            else:
                os.environ["DIDACT_CACHE"] = before


class Entry:
    """One cached set of tensors."""

    def __init__(self, kind: str, *parts: str | bytes) -> None:
        where = place(kind, *parts)
        self.path = where.with_suffix(".safetensors") if where else None

    def read(self) -> dict[str, Tensor] | None:
        """The tensors, or None where there are none (or a damaged file)."""
        if self.path is None or not self.path.exists():
            return None
        try:
            return load_file(self.path)
        except (SafetensorError, OSError):
            return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Keep them; a full or read-only disk only costs the cache."""
        if self.path is None:
            return
        try:
            with files.new_file(self.path) as beside:
                save_file(tensors, str(beside))
        except OSError:
            self.path.unlink(missing_ok=True)
