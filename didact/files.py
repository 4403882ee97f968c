"""Writing so that a kill or a full disk never leaves half a file under its final name."""

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
MARK = ".didact.json"  # in every folder that didact made
VERSION = 1  # of what stands in it
STRAY = re.compile(r"\.didact-(?P<kind>tmp|old)-[0-9a-f]{8}-(?P<name>.+)", re.DOTALL)  # what a kill may leave


def plain(value: Any) -> Any:
    """`value` as strict JSON has it: NaN and infinities become null, tuples lists, paths strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, str):  # a file name that is no text has halves of surrogate pairs, which no file takes
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
    """A path beside `path` to write to; renamed onto `path` when the block ends well, else removed."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(final, "tmp")
    try:
        yield beside
        with open(beside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, final)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` to fill; takes its place when the block ends well, else is removed.

    It is sealed: a `.didact.json` in it has the SHA-256 of every file, which says later what is ours and whole.

    Raises:
        UserError: what stands there is no folder that this function wrote, or holds other files too.
    """
    final = Path(path)
    if STRAY.fullmatch(final.name):  # inside the block of another: that one is swapped in as a whole
        final.mkdir(exist_ok=True)
        yield final
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent, final.name)
    replaceable(final)
    beside, old = _beside(final, "tmp"), _beside(final, "old")
    beside.mkdir()
    try:
        with _in_use(beside):
            yield beside
            _seal(beside)
            _open_to_all_that_may(beside)
            for name in beside.rglob("*"):
                if name.is_file():
                    with open(name, "rb") as handle:
                        os.fsync(handle.fileno())
            replaceable(final)  # files may have come while the block was at work
            with _in_use(final) if final.exists() else contextlib.nullcontext():
                if final.exists():
                    os.replace(final, old)
                os.replace(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def replaceable(path: str | Path) -> None:
    """Refuse to replace what `new_folder` did not write.

    Raises:
        UserError: `path` is a file or a link, or a folder with files that its seal does not name.
    """
    place = Path(path)
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise UserError(f"{path}: a {'link' if place.is_symlink() else 'file'} stands there; move it or choose another")
    if place.is_dir() and (other := foreign(place)):
        raise UserError(
            f"{path}: didact did not write {other[0]}{f' and {len(other) - 1} more' if other[1:] else ''}, "
            "which would be lost: move it, or choose another folder"
        )


def foreign(folder: str | Path) -> list[str]:
    """The files in a folder that its seal does not name: all, where it has none."""
    root, ours = Path(folder), mark(folder).get("sha256", {})
    there = (p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    names = [str(p.relative_to(root)) for p in there if p != root / MARK]
    return sorted(name for name in names if name not in ours)


def damage(folder: str | Path, suffix: str = "") -> str | None:
    """What became of a file of a sealed folder since it was written; None where all (of a suffix) are as they were."""
    for name, wanted in mark(folder).get("sha256", {}).items():
        if name.endswith(suffix):
            try:
                found = digest(Path(folder) / name)
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if found != wanted:
                return f"{name} is not as it was written (its SHA-256 differs)"
    return None


def mark(folder: str | Path) -> dict[str, Any]:
    """What didact's own file in a folder says of it; nothing where there is none, or none that can be read."""
    try:
        told = json.loads((Path(folder) / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = isinstance(told, dict) and told.get("version") == VERSION and isinstance(told.get("sha256", {}), dict)
    return told if known else {}


def write_mark(folder: str | Path, kind: str, **more: Any) -> None:
    """Say that didact made this folder, and what it holds."""
    write_json(Path(folder) / MARK, {"kind": kind, "version": VERSION, **more})


def _open_to_all_that_may(folder: Path) -> None:
    """Give what a library wrote for its owner alone (safetensors does) the permissions the umask gave the folder."""
    allowed = folder.stat().st_mode & 0o777
    for place in folder.rglob("*"):
        if not place.is_symlink():
            os.chmod(place, allowed if place.is_dir() else allowed & 0o666)


def add_file(folder: str | Path, name: str, text: str) -> None:
    """Add a file of text to a folder that `new_folder` wrote, or replace it, and to its seal."""
    told = mark(folder)
    known = {**told.get("sha256", {}), name: hashlib.sha256(text.encode()).hexdigest()}
    if told:  # first, so that a kill in between leaves nothing that the seal does not name
        write_json(Path(folder) / MARK, {**told, "sha256": known})
    with new_file(Path(folder) / name) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def _seal(folder: Path) -> None:
    parts = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MARK)
    write_mark(folder, "files", sha256={str(p.relative_to(folder)): digest(p) for p in parts})


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed writers left of `name` (or of anything) in `folder`; a version set aside comes back."""
    for stray in Path(folder).glob(f"{MARK.removesuffix('.json')}-*"):
        found = STRAY.fullmatch(stray.name)
        if not found or name not in (None, found["name"]) or _busy(stray):
            continue
        final = stray.with_name(found["name"])
        if found["kind"] == "old" and not final.exists():  # killed between two renames: the one before is whole
            os.replace(stray, final)
        elif stray.is_dir() and not stray.is_symlink():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def _beside(final: Path, kind: str) -> Path:
    return final.with_name(f"{MARK.removesuffix('.json')}-{kind}-{secrets.token_hex(4)}-{final.name}")


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Inside the block no other process sweeps `folder` away, under whichever name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        locked(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _busy(stray: Path) -> bool:
    """Whether its writer is alive."""
    try:
        handle = os.open(stray, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return locked(handle, fcntl.LOCK_EX) is False
    finally:
        os.close(handle)


def locked(handle: int, how: int) -> bool | None:
    """Take a lock on an open file without waiting: whether it was free; None where the file system has no locks."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def write_json(path: str | Path, value: Any) -> None:
    """`value` as strict, indented JSON, in one step."""
    with new_file(path) as beside:
        beside.write_text(
            json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """One JSON object a line, in one step."""
    with new_file(path) as beside, open(beside, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, or is damaged.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: not JSON: {error}; {MEND}") from None


def read_lines(path: str | Path) -> list[Any]:
    """The values in a file of JSON lines. Raises as `read_json` does."""
    try:
        return [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: not JSON lines: {error}; {MEND}") from None


def read_text(path: str | Path) -> str:
    """What a text file holds, if it is one: a pipe would be waited for.

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
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: cannot be read: {why}; {MEND}") from None


def digest(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder but hidden ones and READMEs."""
    place = Path(path)
    if not place.is_dir():
        with open(place, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    out = hashlib.sha256()
    for name in sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()):
        if not any(part.startswith((".", "README")) for part in Path(name).parts):
            out.update(f"{name}\0{digest(place / name)}\0".encode("utf-8", "surrogateescape"))
    return out.hexdigest()
