"""How far, how fast, how long still: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from didact import untrusted

EVERY = 10.0  # seconds between lines off a terminal
PATIENCE = 2.0  # seconds that scoring and answering take before they show
_WHERE: ContextVar[str | None] = ContextVar("where", default=None)
_open: list[Bar] = []  # at most one: a terminal shows one bar


class Bar:
    """Progress of one loop of `total` steps (or other units), on standard error. Use as a context manager."""

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False, unit: str = "steps") -> None:
        where = _WHERE.get()
        self.what = what if where in (None, what) else f"{where}: {what}"
        self.total, self.start, self.done, self.unit = total, done, done, unit
        self.quiet = quiet
        self.began = self.shown = time.monotonic()
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
            self.task = self.bar.add_task(self.what, total=total, completed=done, note="")

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
        """One step more (or `count`), with its loss and tokens where it has them."""
        self.done += count
        self.tokens += int(tokens)
        elapsed = max(time.monotonic() - self.began, 1e-9)
        shown = [] if loss is None else [f"loss {loss:.4g}"]
        shown += [f"{self.tokens / elapsed:,.0f} tok/s"] if self.tokens else []
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=", ".join(shown) or "going on")
        elif not self.quiet and time.monotonic() - self.shown > EVERY:
            self.shown = time.monotonic()
            rate = (self.done - self.start) / elapsed
            left = (self.total - self.done) / rate
            shown += [f"{rate:.2g} {self.unit}/s", f"{duration(left)} left"]
            print(f"{self.what}: {self.done}/{self.total} {self.unit}, {', '.join(shown)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def shown(where: str) -> Iterator[None]:
    """Inside the block scoring and answering show how far they are, and they and training whose they are."""
    token = _WHERE.set(where)
    try:
        yield
    finally:
        _WHERE.reset(token)


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """The same for a part of what is shown; nothing where nothing is."""
    outer = _WHERE.get()
    with shown(f"{outer}, {where}") if outer is not None else contextlib.nullcontext():
        yield


class Counted:
    """Progress of scoring or answering: silent outside `shown`, beside another bar, and while it takes no time."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.quiet, self.began = _WHERE.get() is None, time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *given: object) -> None:
        if self.bar:
            self.bar.__exit__(*given)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self.quiet:
            return
        if self.bar is None and time.monotonic() - self.began > PATIENCE and self.done < self.total:
            self.bar = Bar(self.what, self.total, quiet=bool(_open), unit="records").__enter__()
            self.bar.began = self.bar.shown = self.began
        if self.bar is not None:
            self.bar.advance(count=self.done - self.bar.done)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
