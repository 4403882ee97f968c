"""A disk cache of remote models' answers, written as they arrive: no request is sent twice.

One SQLite file in WAL mode, `responses.sqlite` in the cache folder (`DIDACT_CACHE`; `off` disables the cache).
Prompts and answers are stored in plain text, readable by their owner alone; API keys are never written.
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
DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # SQLITE_ERROR: another program's tables
TABLE = """CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY, url TEXT, model TEXT, endpoint TEXT, request TEXT, draw INTEGER, reply TEXT, made REAL)"""
INSERT = "INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
AT_ONCE = 500  # keys per query


def place() -> Path | None:
    """The path of the cache file, or None where `DIDACT_CACHE=off`."""
    root = cache.folder()
    return root / NAME if root else None


def key(url: str, model: str, endpoint: str, request: dict[str, Any], draw: int) -> str:
    """SHA-256 of everything an answer depends on; draws of one request differ in `draw` alone."""
    whole = json.dumps([url, model, endpoint, request, draw], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class CachedAnswer(NamedTuple):
    """An answer to store, and the request it belongs to."""

    key: str
    url: str
    model: str
    endpoint: str
    request: dict[str, Any]
    draw: int
    reply: Any


class Responses:
    """The cache file at `path`; safe for use by several threads and processes.

    A damaged file is renamed and a new one started; a full or read-only disk only turns the cache off. Either prints
    a line on stderr.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._off = False

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The stored answers of these keys."""

        def read(db: sqlite3.Connection) -> dict[str, Any]:
            out, damaged = {}, []
            for start in range(0, len(keys), AT_ONCE):
                batch = keys[start : start + AT_ONCE]
                marks = ", ".join("?" * len(batch))
                for key, reply in db.execute(f"SELECT key, reply FROM responses WHERE key IN ({marks})", batch):
                    try:
                        out[key] = _unseal(key, reply)
                    except (ValueError, TypeError):
                        damaged.append(key)
            if damaged:
                cache.warn(f"{self.path}: answers in it are damaged and will be requested again")
                db.executemany("DELETE FROM responses WHERE key = ?", [(key,) for key in damaged])
            return out

        return (self._run(read) or {}) if keys else {}

    def put(self, answers: Sequence[CachedAnswer]) -> list[Any]:
        """Store answers in one transaction; return the stored ones: another process's where that was first."""
        rows = [(*a[:4], json.dumps(a.request), a.draw, _seal(a.key, a.reply), time.time()) for a in answers]

        def write(db: sqlite3.Connection) -> list[str]:
            with db:
                db.execute("BEGIN IMMEDIATE")
                return [row[0] for row in rows if not db.execute(INSERT, row).rowcount]

        stored = self.get(self._run(write) or [])
        return [stored.get(a.key, a.reply) for a in answers]

    def drop(self, key: str) -> None:
        """Delete one answer."""
        self._run(lambda db: db.execute("DELETE FROM responses WHERE key = ?", (key,)).close())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run `work` on the open file; retry if it was damaged or long busy. None if the cache cannot be used."""
        with self._lock:
            for retry in (True, True, False):
                if self._off:
                    return None
                try:
                    return work(self._connection())
                except (sqlite3.Error, OSError) as error:
                    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
                    self._close()
                    if retry and (code == sqlite3.SQLITE_BUSY or (code in DAMAGE and self._set_aside(error))):
                        continue
                    self._off = True
                    print(f"didact: {self.path}: answers are no longer cached: {error}", file=sys.stderr)
            return None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # SQLite gives its -wal and -shm files the same mode
            self._open = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._open.execute("PRAGMA journal_mode = WAL")
            self._open.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut the last answers
            self._open.execute(TABLE)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(sqlite3.Error):
                self._open.close()
        self._open = None

    def _set_aside(self, error: Exception) -> bool:
        """Rename the damaged file, unless another process has already; return whether a valid file can be used now."""
        try:
            with open(self.path.with_name(f".{NAME}.lock"), "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._sound():
                    return True
                target = self.path.with_name(f"{NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
                os.replace(self.path, target)
                for suffix in ("-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self.path}{suffix}", f"{target}{suffix}")
        except OSError:
            return False
        print(
            f"didact: {self.path} was damaged ({error}): renamed to {target.name}, starting a new one", file=sys.stderr
        )
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
    """Stores answers from the tasks of one event loop; those that arrive during a write go into the next one."""

    def __init__(self, store: Responses) -> None:
        self._store = store
        self._waiting: list[tuple[CachedAnswer, asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def put(self, answer: CachedAnswer) -> Any:
        """Store an answer; return the stored one once it is on disk."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await written

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                replies = await asyncio.to_thread(self._store.put, [answer for answer, _ in batch])
            except Exception as error:
                for _, written in batch:
                    written.set_exception(error)
                continue
            for (_, written), reply in zip(batch, replies, strict=True):
                written.set_result(reply)
        self._writing = None


def _seal(key: str, reply: Any) -> str:
    """A reply as JSON, preceded by the SHA-256 of its key and text: SQLite itself has no checksums."""
    text = json.dumps(reply)
    return f"sha256:{hashlib.sha256(f'{key}{text}'.encode()).hexdigest()} {text}"


def _unseal(key: str, stored: str) -> Any:
    """The reply; those of earlier versions have no checksum.

    Raises:
        ValueError: it is damaged.
    """
    if not stored.startswith("sha256:"):
        return json.loads(stored)
    reply = json.loads(stored.partition(" ")[2])
    if _seal(key, reply) != stored:
        raise ValueError("damaged")
    return reply
