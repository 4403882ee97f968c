"""What is dear to compute and cannot change: tensors on disk, keyed by everything they depend on.

The folder is `DIDACT_CACHE` (`~/.cache/didact` by default; `off` keeps nothing).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from didact import files

SHA256 = 32  # bytes


def folder() -> Path | None:
    """Where caches live, or None where `DIDACT_CACHE=off`, or where there is no home to have one in."""
    place = os.environ.get("DIDACT_CACHE") or "~/.cache/didact"
    try:
        return None if place == "off" else Path(place).expanduser()
    except RuntimeError as error:
        warn(f"no cache: {error}")
        return None


_warned: set[str] = set()


def warn(line: str) -> None:
    """Tell, once in a process, what is wrong with a cache: it only ever costs the cache."""
    if line not in _warned:
        _warned.add(line)
        print(f"didact: {line}", file=sys.stderr)


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
    before = os.environ.get("DIDACT_CACHE")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="didact-cache-", ignore_cleanup_errors=True)
            )
        except OSError as error:
            warn(f"no cache for this work: {error.strerror}")
            folder = "off"
        os.environ["DIDACT_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["DIDACT_CACHE"]
            else:
                os.environ["DIDACT_CACHE"] = before


class Entry:
    """One cached set of tensors: the SHA-256 of the rest of the file, then safetensors.

    Whatever became of it, or of the disk, only costs the cache and is told in a line on stderr.
    """

    def __init__(self, kind: str, *parts: str | bytes) -> None:
        path = place(kind, *parts)
        self.path = path.with_suffix(".tensors") if path else None

    def read(self, *names: str) -> dict[str, Tensor] | None:
        """The tensors, or None where there are none of these names."""
        if self.path is None:
            return None
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            warn(f"{self.path}: the cache cannot be read: {error.strerror}")
            return None
        if hashlib.sha256(raw[SHA256:]).digest() == raw[:SHA256]:
            with contextlib.suppress(SafetensorError):
                tensors = load(raw[SHA256:])
                if set(names) <= tensors.keys():
                    return tensors
        warn(f"{self.path}: the cache is damaged here; made anew")
        return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Keep them."""
        if self.path is None:
            return
        raw = save(tensors)
        try:
            with files.new_file(self.path) as temporary:
                temporary.write_bytes(hashlib.sha256(raw).digest() + raw)
        except OSError as error:
            warn(f"{self.path}: not kept in the cache: {error.strerror}")
