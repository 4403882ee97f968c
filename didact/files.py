"""Atomic writing: a kill or a full disk never leaves half a file under its final name."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from didact.errors import UserError

MEND = "put it back as it was, or remove it"
MARK = ".didact.json"  # in every folder that didact created
VERSION = 1  # of its format
STRAY = re.compile(r"\.didact-(?P<kind>tmp|old)-[0-9a-f]{8}-(?P<name>.+)", re.DOTALL)  # what a killed writer may leave


def plain(value: Any) -> Any:
    """Convert `value` to strict JSON: NaN and infinities become null, tuples lists, paths strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, str):  # an undecodable file name has lone surrogates, which no file can store
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int | bool) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return str(value)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; rename it onto `path` if the block succeeds, else remove it."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final, "tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to fill; move it to `path` if the block succeeds, else remove it.

    It is sealed: its `.didact.json` has the SHA-256 of every file, to tell later what didact wrote and what changed.

    Raises:
        UserError: `path` exists and is not a folder that this function wrote, or holds other files too.
    """
    final = Path(path)
    if STRAY.fullmatch(final.name):  # nested in another new folder, which is swapped in as a whole
        final.mkdir(exist_ok=True)
        yield final
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent, final.name)
    replaceable(final)
    temporary, old = _temporary(final, "tmp"), _temporary(final, "old")
    temporary.mkdir()
    try:
        with _in_use(temporary):
            yield temporary
            _seal(temporary)
            _apply_umask(temporary)
            for entry in temporary.rglob("*"):
                if entry.is_file():
                    with open(entry, "rb") as handle:
                        os.fsync(handle.fileno())
            replaceable(final)  # files may have been added while the block ran
            with _in_use(final) if final.exists() else contextlib.nullcontext():
                if final.exists():
                    os.replace(final, old)
                os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def replaceable(path: str | Path) -> None:
    """Refuse to replace what `new_folder` did not write.

    Raises:
        UserError: `path` is a file or a link, or a folder with files that its seal does not name.
    """
    place = Path(path)
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise UserError(f"{path}: a {'link' if place.is_symlink() else 'file'} is there; move it or choose another")
    if place.is_dir() and (unknown := foreign(place)):
        raise UserError(
            f"{path}: didact did not write {unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, "
            "which would be lost: move it, or choose another folder"
        )


def foreign(folder: str | Path) -> list[str]:
    """Return the files in a folder that its seal does not list: all of them if there is no seal."""
    root, sealed = Path(folder), mark(folder).get("sha256", {})
    paths = (p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    names = [str(p.relative_to(root)) for p in paths if p != root / MARK]
    return sorted(name for name in names if name not in sealed)


def damage(folder: str | Path, suffix: str = "") -> str | None:
    """Return how a file of a sealed folder was damaged; None if all (with this suffix) are as they were written."""
    for name, expected in mark(folder).get("sha256", {}).items():
        if name.endswith(suffix):
            try:
                actual = digest(Path(folder) / name)
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if actual != expected:
                return f"{name} changed since it was written (its SHA-256 differs)"
    return None


def mark(folder: str | Path) -> dict[str, Any]:
    """Return the content of a folder's `.didact.json`; empty if there is none that can be read."""
    try:
        data = json.loads((Path(folder) / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    valid = isinstance(data, dict) and data.get("version") == VERSION and isinstance(data.get("sha256", {}), dict)
    return data if valid else {}


def write_mark(folder: str | Path, kind: str, **fields: Any) -> None:
    """Mark a folder as created by didact, with the kind of its content."""
    write_json(Path(folder) / MARK, {"kind": kind, "version": VERSION, **fields})


def _apply_umask(folder: Path) -> None:
    """Give files that a library wrote for their owner alone (as safetensors does) the umask's permissions."""
    allowed = folder.stat().st_mode & 0o777
    for place in folder.rglob("*"):
        if not place.is_symlink():
            os.chmod(place, allowed if place.is_dir() else allowed & 0o666)


def add_file(folder: str | Path, name: str, text: str) -> None:
    """Add a text file to a folder that `new_folder` wrote, or replace it, and update the seal."""
    seal = mark(folder)
    digests = {**seal.get("sha256", {}), name: hashlib.sha256(text.encode()).hexdigest()}
    if seal:  # first, so that a kill in between leaves no file that the seal does not list
        write_json(Path(folder) / MARK, {**seal, "sha256": digests})
    with new_file(Path(folder) / name) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _seal(folder: Path) -> None:
    parts = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MARK)
    write_mark(folder, "files", sha256={str(p.relative_to(folder)): digest(p) for p in parts})


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed writers left of `name` (or of anything) in `folder`; restore a version that was set aside."""
    for stray in Path(folder).glob(f"{MARK.removesuffix('.json')}-*"):
        match = STRAY.fullmatch(stray.name)
        if not match or name not in (None, match["name"]) or _has_live_writer(stray):
            continue
        final = stray.with_name(match["name"])
        if match["kind"] == "old" and not final.exists():  # killed between two renames: the old version is complete
            os.replace(stray, final)
        elif stray.is_dir() and not stray.is_symlink():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def _temporary(final: Path, kind: str) -> Path:
    return final.with_name(f"{MARK.removesuffix('.json')}-{kind}-{secrets.token_hex(4)}-{final.name}")


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Inside the block no other process sweeps `folder` away, even after it is renamed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        locked(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _has_live_writer(stray: Path) -> bool:
    """Whether the process that writes it is alive."""
    try:
        handle = os.open(stray, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return locked(handle, fcntl.LOCK_EX) is False
    finally:
        os.close(handle)


def locked(handle: int, operation: int) -> bool | None:
    """Take a lock on an open file without waiting; return whether it was free, None if the file system has no locks."""
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as strict, indented JSON, atomically."""
    with new_file(path) as temporary:
        temporary.write_text(
            json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line, atomically."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, or is damaged.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: not JSON: {error}; {MEND}") from None


def read_lines(path: str | Path) -> list[Any]:
    """Return the values in a file of JSON lines. Raises like `read_json`."""
    try:
        return [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: not JSON lines: {error}; {MEND}") from None


def read_text(path: str | Path) -> str:
    """Return the content of a text file; a pipe, which would block, is refused.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is a folder or pipe, or cannot be read as text.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: cannot be read: not a file; {MEND}")
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: cannot be read: {reason}; {MEND}") from None


def digest(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files except hidden ones and READMEs."""
    place = Path(path)
    if not place.is_dir():
        with open(place, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    total = hashlib.sha256()
    for name in sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()):
        if not any(part.startswith((".", "README")) for part in Path(name).parts):
            total.update(f"{name}\0{digest(place / name)}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
