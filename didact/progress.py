"""Progress, speed and time left: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from didact import untrusted

EVERY = 10.0  # seconds between lines, where there is no terminal
PATIENCE = 2.0  # seconds of scoring or answering before progress is shown
_LABEL: ContextVar[str | None] = ContextVar("where", default=None)
_open: list[Bar] = []  # at most one: a terminal shows one bar


class Bar:
    """Progress of one loop of `total` steps (or other units), on standard error. Use as a context manager."""

    def __init__(self, label: str, total: int, done: int = 0, quiet: bool = False, unit: str = "steps") -> None:
        outer = _LABEL.get()
        self.label = label if outer in (None, label) else f"{outer}: {label}"
        self.total, self.start, self.done, self.unit = total, done, done, unit
        self.quiet = quiet
        self.started = self.printed = time.monotonic()
        self.tokens = 0
        self.bar: Progress | None = None
        if not quiet and sys.stderr.isatty() and not _open:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=untrusted.console(stderr=True), transient=True)
            self.task = self.bar.add_task(self.label, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        if self.bar:
            _open.append(self)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            _open.remove(self)
            self.bar.stop()

    def advance(self, loss: float | None = None, tokens: float = 0, count: int = 1) -> None:
        """Count one more step (or `count`), with its loss and tokens if it has them."""
        self.done += count
        self.tokens += int(tokens)
        elapsed = max(time.monotonic() - self.started, 1e-9)
        note = [] if loss is None else [f"loss {loss:.4g}"]
        note += [f"{self.tokens / elapsed:,.0f} tok/s"] if self.tokens else []
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=", ".join(note) or "running")
        elif not self.quiet and time.monotonic() - self.printed > EVERY:
            self.printed = time.monotonic()
            rate = (self.done - self.start) / elapsed
            remaining = (self.total - self.done) / rate
            note += [f"{rate:.2g} {self.unit}/s", f"{duration(remaining)} left"]
            print(f"{self.label}: {self.done}/{self.total} {self.unit}, {', '.join(note)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Inside the block show progress of scoring and answering, and put `label` before theirs and training's."""
    token = _LABEL.set(label)
    try:
        yield
    finally:
        _LABEL.reset(token)


@contextlib.contextmanager
def within(label: str) -> Iterator[None]:
    """Inside the block add `label` to the outer one; without an outer one do nothing."""
    outer = _LABEL.get()
    with labelled(f"{outer}, {label}") if outer is not None else contextlib.nullcontext():
        yield


class Counted:
    """Progress of scoring or answering: silent outside `labelled`, beside another bar, and for the first `PATIENCE`."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.quiet, self.started = _LABEL.get() is None, time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.__exit__(*error)

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self.done += count
        if self.quiet:
            return
        if self.bar is None and time.monotonic() - self.started > PATIENCE and self.done < self.total:
            self.bar = Bar(self.label, self.total, quiet=bool(_open), unit="records").__enter__()
            self.bar.started = self.bar.printed = self.started
        if self.bar is not None:
            self.bar.advance(count=self.done - self.bar.done)


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
