"""A cache on disk for tensors that are expensive to compute, keyed by everything they depend on.

The folder is `DIDACT_CACHE` (`~/.cache/didact` by default; `off` disables caching).
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
    """Return the cache folder; None if `DIDACT_CACHE=off`, or if there is no home folder to put it in."""
    place = os.environ.get("DIDACT_CACHE") or "~/.cache/didact"
    try:
        return None if place == "off" else Path(place).expanduser()
    except RuntimeError as error:
        warn(f"no cache: {error}")
        return None


_warned: set[str] = set()


def warn(line: str) -> None:
    """Print a problem with the cache, once per process: it never costs more than the cache."""
    if line not in _warned:
        _warned.add(line)
        print(f"didact: {line}", file=sys.stderr)


def place(kind: str, *parts: str | bytes) -> Path | None:
    """Return the path of an entry of this kind, named by the hash of its parts; None if caching is off."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    root = folder()
    return root / kind / digest.hexdigest()[:32] if root else None


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Use a private, empty cache inside: results of an earlier run must not replace work that is measured."""
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

    A damaged entry, or an error of the disk, only costs the cache and is reported in one line on stderr.
    """

    def __init__(self, kind: str, *parts: str | bytes) -> None:
        path = place(kind, *parts)
        self.path = path.with_suffix(".tensors") if path else None

    def read(self, *names: str) -> dict[str, Tensor] | None:
        """Return the tensors, or None if there is no entry with these names."""
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
        warn(f"{self.path}: the cache entry is damaged; computing it again")
        return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write the entry."""
        if self.path is None:
            return
        raw = save(tensors)
        try:
            with files.new_file(self.path) as temporary:
                temporary.write_bytes(hashlib.sha256(raw).digest() + raw)
        except OSError as error:
            warn(f"{self.path}: not written to the cache: {error.strerror}")
