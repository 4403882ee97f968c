"""Ctrl-C and SIGTERM during training: the current step is finished and saved first."""

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
class Interrupt:
    """The signal that asked the loop to stop, if there was one."""

    signum: int | None = None


@contextlib.contextmanager
def after_the_step(active: bool) -> Iterator[Interrupt]:
    """Only note a first signal inside the block; it takes effect after the block, a second one at once.

    Signals that are ignored, or handled outside of Python, stay so; only the main thread can receive them.
    """
    interrupt = Interrupt()
    handlers: dict[signal.Signals, Any] = {}

    def handle(signum: int, frame: FrameType | None) -> None:
        interrupt.signum = signum
        print("didact: stopping after this step is saved (interrupt again to stop now)", file=sys.stderr, flush=True)
        restore()

    def restore() -> None:
        while handlers:
            signal.signal(*handlers.popitem())

    if active:
        with contextlib.suppress(ValueError):  # another thread than the main one
            for signum in SIGNALS:
                if (handler := signal.getsignal(signum)) not in (signal.SIG_IGN, None):
                    handlers[signum] = handler
                    signal.signal(signum, handle)
    try:
        yield interrupt
    finally:
        restore()
    if interrupt.signum is not None:
        signal.raise_signal(interrupt.signum)
