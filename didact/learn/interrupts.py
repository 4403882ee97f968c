"""Ctrl-C and SIGTERM while a model is trained: the step at work is finished and kept first."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Asked:
    """Which signal asked the loop to stop, if one did."""

    signum: int | None = None


@contextlib.contextmanager
def after_the_step(active: bool) -> Iterator[Asked]:
    """Inside the block a first signal is only noted; after it, and for a second one, it does what it did before.

    Signals that are ignored, or that other code than Python's handles, stay so; only the main thread can take them.
    """
    asked = Asked()
    before: dict[signal.Signals, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        asked.signum = signum
        print("didact: stopping once this step is done and kept (again: at once)", file=sys.stderr, flush=True)
        restore()

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    if active:
        with contextlib.suppress(ValueError):  # another thread than the main one
            for signum in SIGNALS:
                if (now := signal.getsignal(signum)) not in (signal.SIG_IGN, None):
                    before[signum] = now
                    signal.signal(signum, note)
    try:
        yield asked
    finally:
        restore()
    if asked.signum is not None:
        signal.raise_signal(asked.signum)
