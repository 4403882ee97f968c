"""Strangers' text, made fit to be kept and shown: no key of ours in it, nothing that no file or terminal takes."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from didact.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

MASK = "***"
# What a terminal obeys instead of showing: controls of both sets, orders of direction, line ends of Unicode; and halves
# of surrogate pairs, which stand for bytes of file names that are no text.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What tokenizers and chat templates take for an order in the middle of a text: `<|im_start|>`, `</s>`, `[INST]`.
ORDERS = re.compile(r"<[^<>\s]{1,60}>|\[/?(?:INST|SYS\w*)\]")
SHORTEST = 6  # characters: what is shorter ("EMPTY", "none") is no secret, and may well be part of an answer
CREDENTIALS = re.compile(r"(?<=://)[^\s#]*(?:@|%40)", re.IGNORECASE)  # of an address: `:key@`, `user:password@`
_KEYS: dict[str, re.Pattern[str]] = {}


def keep_secret(key: str, what: str) -> str:
    """Remember a key, so that it is masked wherever text goes from now on; the key itself.

    Raises:
        UserError: no HTTP header can carry it.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{what} holds a line end, a space or a letter that no key has; copy it anew")
    if len(key) >= SHORTEST:
        _KEYS[key] = re.compile("|".join(re.escape(form) for form in _forms(key)), re.IGNORECASE)
    return key


def masked(text: str) -> str:
    """`text` without our keys, however they are written in it (percent signs, JSON's escapes, base64)."""
    for pattern in list(_KEYS.values()):
        text = pattern.sub(MASK, text)
    return text


def without_credentials(text: str) -> str:
    """`text` without our keys and without what stands before the `@` of addresses: for messages."""
    return CREDENTIALS.sub(f"{MASK}@", masked(text))


def shown(text: str) -> str:
    """`text` fit for a terminal or a log: no keys, and as escapes whatever a terminal would obey."""
    told = without_credentials(text)
    start = told[:1] if told[:1] == "\r" else ""  # a progress bar of a library over its own line
    return start + OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), told[len(start) :])


def prose(text: str) -> str:
    """A stranger's text as one line for a prompt: no control characters, no line ends that could begin a part of the
    prompt, and nothing that a tokenizer would read as a special token."""
    return " ".join(ORDERS.sub(" ", OBEYED.sub(" ", str(cleaned(text)))).split())


class Screen:
    """A stream through which all text goes as `shown` has it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write it; how long it was."""
        self.stream.write(shown(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class ExceededError(BaseException):
    """A limit was passed. No `Exception`, lest the limited code keep it to itself."""


@contextlib.contextmanager
def limited(seconds: float, more_bytes: int | None = None) -> Iterator[None]:
    """Run strangers' Python for so many seconds at most, in so much more memory than now.

    The time is kept in the main thread alone (a signal ends it there); memory is that of the whole process.

    Raises:
        ExceededError: it took longer.
        MemoryError: it wanted more.
    """

    def end(*_: Any) -> None:
        raise ExceededError

    with contextlib.ExitStack() as after:
        if threading.current_thread() is threading.main_thread():
            after.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, end))
            after.callback(signal.setitimer, signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        if more_bytes is not None:
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            with contextlib.suppress(OSError, ValueError):  # where the system does not tell, or allows no more anyway
                with open("/proc/self/statm", encoding="utf-8") as told:
                    most = int(told.read().split()[0]) * resource.getpagesize() + more_bytes
                if soft in (-1, resource.RLIM_INFINITY) or most < soft:
                    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
                    after.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        yield


@contextlib.contextmanager
def screened() -> Iterator[None]:
    """Standard output and error through `Screen`s; what their encoding has no letter for becomes an escape."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (Screen(stream) if stream else stream for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def console(width: int | None = None, stderr: bool = False) -> Console:
    """A rich console whose text is as `shown` has it, so that only its own colours and movements are obeyed."""
    from rich.console import Console
    from rich.segment import Segment

    class Shown(Console):
        def render_str(self, text: str, **how: Any) -> Any:  # before it is measured
            return super().render_str(shown(text), **how)

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for part in super().render(renderable, options):
                yield part if part.control else Segment(shown(part.text), part.style)

    stream: Any = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() else width
    file = stream.stream if isinstance(stream, Screen) else stream
    return Shown(file=file, width=wide, markup=False, highlight=False)


def cleaned(value: Any) -> Any:
    """A JSON value without our keys, and without halves of surrogate pairs, which no file takes."""
    if isinstance(value, str):
        whole = value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return masked(whole)
    if isinstance(value, dict):
        return {cleaned(name): cleaned(item) for name, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def _forms(key: str) -> Iterator[str]:
    yield from sorted({key, quote(key, safe=""), json.dumps(key)[1:-1]}, key=len, reverse=True)
    for before in range(3):  # how many bytes of a base64 group what stands before it takes
        bits = 8 * (before + len(key))
        inside = base64.b64encode(bytes(before) + key.encode()).decode()[-(-8 * before // 6) : bits // 6]
        yield from {inside, inside.translate(str.maketrans("+/", "-_"))}
