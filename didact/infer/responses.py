"""Answers of remote models, kept on disk as they come: what was answered once is not asked again.

One SQLite file in WAL mode, `responses.sqlite` in the cache folder (`DIDACT_CACHE`; `off` keeps nothing).
Prompts and answers lie there in clear, readable by their owner alone; keys to servers are never written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from didact.models import cache

T = TypeVar("T")
NAME = "responses.sqlite"
PATIENCE = 30.0  # seconds to wait for another process that is writing
DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # SQLITE_ERROR: tables not ours
TABLE = """CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY, url TEXT, model TEXT, endpoint TEXT, request TEXT, draw INTEGER, reply TEXT, made REAL)"""


def place() -> Path | None:
    """Where answers are kept, or None where `DIDACT_CACHE=off`."""
    root = cache.folder()
    return root / NAME if root else None


def key(url: str, model: str, endpoint: str, request: dict[str, Any], draw: int) -> str:
    """SHA-256 of everything an answer depends on; draws of one request differ in `draw` alone."""
    whole = json.dumps([url, model, endpoint, request, draw], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(whole.encode()).hexdigest()


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

    def get(self, key: str) -> Any | None:
        """The answer under this key, or None."""

        def read(db: sqlite3.Connection) -> Any | None:
            row = db.execute("SELECT reply FROM responses WHERE key = ?", (key,)).fetchone()
            try:
                return _unsealed(key, row[0]) if row else None
            except (ValueError, TypeError):
                cache.warn(f"{self.path}: answers in it are damaged; they are asked for anew")
                db.execute("DELETE FROM responses WHERE key = ?", (key,))
                return None

        return self._do(read)

    def put(self, key: str, url: str, model: str, endpoint: str, request: dict[str, Any], draw: int, reply: Any) -> Any:
        """Keep an answer; returns the one that is kept: where another process was first, its answer."""
        row = (key, url, model, endpoint, json.dumps(request), draw, _sealed(key, reply), time.time())

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

        self._do(write)
        kept = self.get(key)
        return reply if kept is None else kept

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
