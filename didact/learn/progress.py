"""How far, how fast, how long still: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from didact import untrusted

EVERY = 10.0  # seconds between lines off a terminal


class Bar:
    """Progress of one loop of `total` steps, on standard error. Use as a context manager."""

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self.what, self.total, self.start, self.done = what, total, done, done
        self.quiet = quiet
        self.began = self.shown = time.monotonic()
        self.tokens = 0
        self.bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=untrusted.console(stderr=True), transient=True)
            self.task = self.bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, loss: float | None = None, tokens: float = 0) -> None:
        """One step more, with its loss and tokens where it has them."""
        self.done += 1
        self.tokens += int(tokens)
        elapsed = max(time.monotonic() - self.began, 1e-9)
        shown = [] if loss is None else [f"loss {loss:.4g}"]
        note = ", ".join(shown + ([f"{self.tokens / elapsed:,.0f} tok/s"] if self.tokens else [])) or "going on"
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=note)
        elif not self.quiet and time.monotonic() - self.shown > EVERY:
            self.shown = time.monotonic()
            rate = (self.done - self.start) / elapsed
            left = (self.total - self.done) / rate
            line = f"{self.what}: {self.done}/{self.total} steps, {note}, {rate:.2g} steps/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
