"""Whose a folder is, and who is at work in it.

A folder is ours only by the `.didact.json` that didact wrote when it made it; what stands in another is never touched.
One process works on a thing at a time. On one machine flock tells, which ends with the process; where a folder that
several machines share does not carry flock, who has not touched the file of its claim for a minute counts as dead.
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
BEAT, LEASE = 10.0, 60.0  # seconds between two touches, and without one until a claim counts as given up


def check(folder: str | Path, kind: str) -> None:
    """Refuse a folder that is not ours to write a run, a comparison, ... into.

    Raises:
        UserError: it holds what didact did not write, or what another verb did.
    """
    place = Path(folder)
    try:
        if not place.is_dir():
            if place.exists() or place.is_symlink():
                raise UserError(f"{folder}: not a folder; choose another")
            return
        told = files.mark(place).get("kind")
        others = [p.name for p in place.iterdir() if not _own(p.name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
    if told not in (kind, None):
        raise UserError(f"{folder} holds what another verb of didact wrote ({told}): choose another")
    if told is None and others:
        raise UserError(
            f"{folder}: not empty and not made by didact ({min(others)} stands there), so nothing in it is touched: "
            "choose another (what an earlier version wrote can be moved away)"
        )


def enter(folder: str | Path, kind: str) -> None:
    """Make a folder ours, or go on in one that is.

    Raises:
        UserError: it is not ours (see `check`), or cannot be written.
    """
    check(folder, kind)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not files.mark(folder):
            files.write_mark(folder, kind)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None


def join(folder: str | Path, names: Sequence[str]) -> None:
    """Make ready to write these names into a folder that may hold other things.

    Raises:
        UserError: one stands there already, and didact did not write it.
    """
    place, told = Path(folder), files.mark(folder)
    kind = told.get("kind", "result")
    if kind == "files":
        raise UserError(f"{folder}: a folder of one thing, a model or a checkpoint: choose another folder")
    ours = told.get("names", ()) if kind == "result" else names
    if taken := [name for name in names if name not in ours and os.path.lexists(place / name)]:
        raise UserError(f"{place / taken[0]}: didact did not write it, and will not replace it: choose another folder")
    if kind == "result":
        files.write_mark(place, "result", names=sorted({*ours, *names}))


def apart(folder: str | Path, inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse a folder to write into that is one of these files and folders, in one, or around one.

    Raises:
        UserError: it is; the message has the name that comes with the input.
    """
    place = Path(folder).resolve()
    for name, path in inputs:
        given = path.resolve()
        how = "is" if place == given else "lies in" if given in place.parents else "holds"
        if how != "holds" or place in given.parents:
            raise UserError(f"--out {folder} {how} the input {name} {path}, which must stay as it is: choose another")


@contextlib.contextmanager
def at_work(folder: str | Path, kind: str, shared: bool = False) -> Iterator[None]:
    """Inside the block a folder is ours and this process alone, or those that share it, at work there.

    Raises:
        UserError: it is not ours, cannot be written, or another process is at work in it.
    """
    enter(folder, kind)
    with claimed(folder, shared=shared) as other:
        if other is not None:
            raise UserError(f"another run is at work in {folder}: {other}; wait, or choose another --out")
        yield


@contextlib.contextmanager
def alone(folder: str | Path, name: str) -> Iterator[None]:
    """The same for one name in a folder, waiting until it is free."""
    while True:
        with claimed(folder, name) as other:
            if other is None:
                yield
                return
        time.sleep(0.1)


@contextlib.contextmanager
def claimed(folder: str | Path, name: str = "", shared: bool = False) -> Iterator[str | None]:
    """Who else is at work on `name` in `folder` (`process 12 on host since ...`); None where it is this process's now.

    A claim ends with the block, or with the process. Shared ones exclude only those that are not.

    Raises:
        UserError: the folder cannot be written.
    """
    root = Path(folder)
    token = secrets.token_hex(4)
    beside, mine = root / f".didact-tmp-{token}-held", root / f".didact-held-{token}-{name}"
    told = {
        "pid": os.getpid(), "host": platform.node(), "kernel": _kernel(), "shared": shared,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    with contextlib.ExitStack() as held:
        try:
            with open(root / LOCK, "a", encoding="utf-8") as turn:
                with contextlib.suppress(OSError):  # a file system without locks: claims are seen by their files
                    fcntl.flock(turn, fcntl.LOCK_EX)
                files.sweep(root, "held")
                handle = held.enter_context(open(beside, "wb", buffering=0))
                held.callback(mine.unlink, missing_ok=True)
                files.locked(handle.fileno(), fcntl.LOCK_EX)
                handle.write(json.dumps(told).encode())
                beside.rename(mine)  # whole from the first: a claim that says nothing could not be told to be dead
                now = mine.stat().st_mtime  # by the file server's clock
                others = [_holder(path, now) for path in root.glob(".didact-held-*") if path != mine
                          and (found := HELD.fullmatch(path.name)) and found["name"] == name]  # fmt: skip
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        for other in others:
            if other is not None and not (shared and other.get("shared")):
                held.close()
                yield f"process {other.get('pid')} on {other.get('host')} since {other.get('since')}"
                return
        stop = threading.Event()
        threading.Thread(target=_beat, args=(mine, stop), daemon=True).start()
        held.callback(stop.set)
        yield None


def _holder(path: Path, now: float) -> dict[str, Any] | None:
    """What a claim's file says, where its process is alive; that of a dead one is removed."""
    try:
        with open(path, "r+", encoding="utf-8") as handle:
            free = files.locked(handle.fileno(), fcntl.LOCK_EX)
            text, touched = handle.read(), os.fstat(handle.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    dead_here = free is True and told.get("kernel") == _kernel()
    if free is False or not (dead_here or now - touched > LEASE):
        return dict(told)
    path.unlink(missing_ok=True)
    return None


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _kernel() -> str:
    """Names this boot of this machine: flock is told apart within one kernel, whatever its containers are called."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def _own(name: str) -> bool:
    """Whether a name in a folder is one that only didact gives, and that says nothing of what the folder holds."""
    return name in (files.MARK, LOCK) or bool(files.STRAY.fullmatch(name) or HELD.fullmatch(name))
