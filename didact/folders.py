"""Ownership of output folders, and locks on them.

didact owns a folder only if it has the `.didact.json` written when didact created it; others are never touched.
One process at a time works on a folder, or on one name in it. On one machine this is an flock, which ends with the
process; on a shared file system without flock, a process that has not touched its claim for a minute counts as dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from didact import files
from didact.errors import UserError

LOCK = ".didact-lock"
HELD = re.compile(r"\.didact-held-[0-9a-f]{8}-(?P<name>.*)", re.DOTALL)
BEAT, LEASE = 10.0, 60.0  # seconds between two touches of a claim, and without one until it counts as abandoned


def check(folder: str | Path, kind: str) -> None:
    """Refuse a folder that didact may not write a result of this kind (a run, a comparison, ...) into.

    Raises:
        UserError: it holds files that didact did not write, or the output of another verb.
    """
    place = Path(folder)
    try:
        if not place.is_dir():
            if place.exists() or place.is_symlink():
                raise UserError(f"{folder}: not a folder; choose another")
            return
        marked = files.mark(place).get("kind")
        names = [p.name for p in place.iterdir() if not _is_bookkeeping(p.name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
    if marked not in (kind, None):
        raise UserError(f"{folder} holds the output of another didact verb ({marked}): choose another folder")
    if marked is None and names:
        raise UserError(
            f"{folder}: not empty and not made by didact (it holds {min(names)}), so it is left untouched: "
            "choose another folder (or move away the output of an earlier version)"
        )


def enter(folder: str | Path, kind: str) -> None:
    """Create and mark a folder for results of this kind, or accept one marked so.

    Raises:
        UserError: it may not be used (see `check`), or cannot be written.
    """
    check(folder, kind)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not files.mark(folder):
            files.write_mark(folder, kind)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None


def join(folder: str | Path, names: Sequence[str]) -> None:
    """Prepare to write these names into a folder that may hold other files.

    Raises:
        UserError: one of them exists already, and didact did not write it.
    """
    place, mark = Path(folder), files.mark(folder)
    kind = mark.get("kind", "result")
    if kind == "files":
        raise UserError(f"{folder}: the folder of a single model or checkpoint: choose another folder")
    own = mark.get("names", ()) if kind == "result" else names
    if clash := [name for name in names if name not in own and os.path.lexists(place / name)]:
        raise UserError(f"{place / clash[0]}: didact did not write it, and will not replace it: choose another folder")
    if kind == "result":
        files.write_mark(place, "result", names=sorted({*own, *names}))


def check_separate(folder: str | Path, inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse an output folder that is one of these named inputs, lies in one, or contains one.

    Raises:
        UserError: it does; the message has the input's name.
    """
    place = Path(folder).resolve()
    for name, path in inputs:
        source = path.resolve()
        relation = "is" if place == source else "lies in" if source in place.parents else "holds"
        if relation != "holds" or place in source.parents:
            raise UserError(f"--out {folder} {relation} the input {name} {path}, which must not change: choose another")


@contextlib.contextmanager
def at_work(folder: str | Path, kind: str, shared: bool = False) -> Iterator[None]:
    """Mark the folder and hold its lock inside the block, alone or together with others that ask for it `shared`.

    Raises:
        UserError: it may not be used, cannot be written, or another process holds it.
    """
    enter(folder, kind)
    with claimed(folder, shared=shared) as holder:
        if holder is not None:
            raise UserError(f"another run is using {folder}: {holder}; wait for it, or choose another --out")
        yield


@contextlib.contextmanager
def alone(folder: str | Path, name: str) -> Iterator[None]:
    """Hold the lock on one name in a folder inside the block; wait until it is free."""
    while True:
        with claimed(folder, name) as holder:
            if holder is None:
                yield
                return
        time.sleep(0.1)


@contextlib.contextmanager
def claimed(folder: str | Path, name: str = "", shared: bool = False) -> Iterator[str | None]:
    """Claim `name` in `folder`; yield None, or the process that holds it already (`process 12 on host since ...`).

    A claim ends with the block, or with the process. Shared claims exclude only those that are not shared.

    Raises:
        UserError: the folder cannot be written.
    """
    root = Path(folder)
    token = secrets.token_hex(4)
    temporary, claim = root / f".didact-tmp-{token}-held", root / f".didact-held-{token}-{name}"
    details = {
        "pid": os.getpid(), "host": platform.node(), "kernel": _boot_id(), "shared": shared,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        try:
            with open(root / LOCK, "a", encoding="utf-8") as lock:
                with contextlib.suppress(OSError):  # a file system without locks: claims still have their files
                    fcntl.flock(lock, fcntl.LOCK_EX)
                files.sweep(root, "held")
                handle = stack.enter_context(open(temporary, "wb", buffering=0))
                stack.callback(claim.unlink, missing_ok=True)
                files.locked(handle.fileno(), fcntl.LOCK_EX)
                handle.write(json.dumps(details).encode())
                temporary.rename(claim)  # complete from the start: an empty claim could not be recognised as dead
                now = claim.stat().st_mtime  # by the file server's clock
                holders = [_live_holder(path, now) for path in root.glob(".didact-held-*") if path != claim
                          and (match := HELD.fullmatch(path.name)) and match["name"] == name]  # fmt: skip
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        for holder in holders:
            if holder is not None and not (shared and holder.get("shared")):
                stack.close()
                yield f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
                return
        stop = threading.Event()
        threading.Thread(target=_keep_alive, args=(claim, stop), daemon=True).start()
        stack.callback(stop.set)
        yield None


def _live_holder(path: Path, now: float) -> dict[str, Any] | None:
    """Return the content of a claim whose process is alive; remove the claim of a dead process."""
    try:
        with open(path, "r+", encoding="utf-8") as handle:
            free = files.locked(handle.fileno(), fcntl.LOCK_EX)
            text, touched = handle.read(), os.fstat(handle.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        details = json.loads(text)
    except ValueError:
        details = {}
    dead_here = free is True and details.get("kernel") == _boot_id()
    if free is False or not (dead_here or now - touched > LEASE):
        return dict(details)
    path.unlink(missing_ok=True)
    return None


def _keep_alive(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _boot_id() -> str:
    """Return an id of this boot of this machine: flock holds within one kernel, whatever its containers are called."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def _is_bookkeeping(name: str) -> bool:
    """Whether a name is one of didact's own hidden files, which are no part of a folder's content."""
    return name in (files.MARK, LOCK) or bool(files.STRAY.fullmatch(name) or HELD.fullmatch(name))
