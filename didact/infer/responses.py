"""Answers of remote models, kept on disk as they come: what was answered once is not asked again.

One SQLite file in WAL mode, `responses.sqlite` in the cache folder (`DIDACT_CACHE`; `off` keeps nothing).
Prompts and answers lie there in clear, readable by their owner alone; keys to servers are never written.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from didact.models import cache

T = TypeVar("T")
NAME = "responses.sqlite"
PATIENCE = 30.0  # seconds to wait for another process that is writing
DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # SQLITE_ERROR: tables not ours
TABLE = """CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY, url TEXT, model TEXT, endpoint TEXT, request TEXT, draw INTEGER, reply TEXT, made REAL)"""
INSERT = "INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
AT_ONCE = 500  # keys of a query


def place() -> Path | None:
    """Where answers are kept, or None where `DIDACT_CACHE=off`."""
    root = cache.folder()
    return root / NAME if root else None


def key(url: str, model: str, endpoint: str, request: dict[str, Any], draw: int) -> str:
    """SHA-256 of everything an answer depends on; draws of one request differ in `draw` alone."""
    whole = json.dumps([url, model, endpoint, request, draw], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class Kept(NamedTuple):
    """An answer to keep, and what it depends on."""

    key: str
    url: str
    model: str
    endpoint: str
    request: dict[str, Any]
    draw: int
    reply: Any


class Responses:
    """The file at `path`; safe under threads and processes.

    A damaged file is set aside under another name and a new one begun; a full or read-only disk only costs
    the cache. Either is told in a line on stderr.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._off = False

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The answers kept under these keys."""

        def read(db: sqlite3.Connection) -> dict[str, Any]:
            out, damaged = {}, []
            for at in range(0, len(keys), AT_ONCE):
                some = keys[at : at + AT_ONCE]
                marks = ", ".join("?" * len(some))
                for key, reply in db.execute(f"SELECT key, reply FROM responses WHERE key IN ({marks})", some):
                    try:
                        out[key] = _unsealed(key, reply)
                    except (ValueError, TypeError):
                        damaged.append(key)
            if damaged:
                cache.warn(f"{self.path}: answers in it are damaged; they are asked for anew")
                db.executemany("DELETE FROM responses WHERE key = ?", [(key,) for key in damaged])
            return out

        return (self._do(read) or {}) if keys else {}

    def put(self, answers: Sequence[Kept]) -> list[Any]:
        """Keep answers, in one transaction; returns those that are kept: where another process was first, its own."""
        rows = [(*a[:4], json.dumps(a.request), a.draw, _sealed(a.key, a.reply), time.time()) for a in answers]

        def write(db: sqlite3.Connection) -> list[str]:
            with db:
                db.execute("BEGIN IMMEDIATE")
                return [row[0] for row in rows if not db.execute(INSERT, row).rowcount]

        theirs = self.get(self._do(write) or [])
        return [theirs.get(a.key, a.reply) for a in answers]

    def drop(self, key: str) -> None:
        """Forget one answer."""
        self._do(lambda db: db.execute("DELETE FROM responses WHERE key = ?", (key,)).close())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """`work` on the open file, again where it was damaged or long busy; None where nothing can be kept."""
        with self._lock:
            for again in (True, True, False):
                if self._off:
                    return None
                try:
                    return work(self._connection())
                except (sqlite3.Error, OSError) as error:
                    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # extended codes carry the plain one below
                    self._close()
                    if again and (code == sqlite3.SQLITE_BUSY or (code in DAMAGE and self._set_aside(error))):
                        continue
                    self._off = True
                    print(f"didact: {self.path}: answers are not kept from here on: {error}", file=sys.stderr)
            return None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # SQLite gives its -wal and -shm files the same mode
            self._open = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._open.execute("PRAGMA journal_mode = WAL")
            self._open.execute("PRAGMA synchronous = NORMAL")  # a kill costs nothing, a power cut the last answers
            self._open.execute(TABLE)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(sqlite3.Error):
                self._open.close()
        self._open = None

    def _set_aside(self, error: Exception) -> bool:
        """Rename the damaged file, unless another process has done so already; whether there is a sound one now."""
        try:
            with open(self.path.with_name(f".{NAME}.lock"), "w", encoding="utf-8") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if self._sound():
                    return True
                aside = self.path.with_name(f"{NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
                os.replace(self.path, aside)
                for tail in ("-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self.path}{tail}", f"{aside}{tail}")
        except OSError:
            return False
        print(f"didact: {self.path} was damaged ({error}): set aside as {aside.name}, a new one begun", file=sys.stderr)
        return True

    def _sound(self) -> bool:
        try:
            db = sqlite3.connect(self.path, timeout=PATIENCE)
            with contextlib.closing(db):
                columns = [row[1] for row in db.execute("PRAGMA table_info(responses)")]
                checked = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            return checked == "ok" and columns[:1] == ["key"] and columns[-1:] == ["made"]
        except sqlite3.Error:
            return False


class Writer:
    """Keeps answers as they come, for tasks of one loop: those that come while others are written go in together."""

    def __init__(self, kept: Responses) -> None:
        self._kept = kept
        self._waiting: list[tuple[Kept, asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def put(self, answer: Kept) -> Any:
        """Keep an answer; returns, once it is on disk, the one that is kept."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await written

    async def _write(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            try:
                kept = await asyncio.to_thread(self._kept.put, [answer for answer, _ in together])
            except Exception as error:
                for _, written in together:
                    written.set_exception(error)
                continue
            for (_, written), reply in zip(together, kept, strict=True):
                written.set_result(reply)
        self._writing = None


def _sealed(key: str, reply: Any) -> str:
    """A reply as JSON behind the SHA-256 of it and its key: SQLite itself has no checksums."""
    text = json.dumps(reply)
    return f"sha256:{hashlib.sha256(f'{key}{text}'.encode()).hexdigest()} {text}"


def _unsealed(key: str, kept: str) -> Any:
    """The reply; those of earlier versions stand without a checksum.

    Raises:
        ValueError: it is damaged.
    """
    if not kept.startswith("sha256:"):
        return json.loads(kept)
    reply = json.loads(kept.partition(" ")[2])
    if _sealed(key, reply) != kept:
        raise ValueError("damaged")
    return reply
