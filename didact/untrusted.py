"""Untrusted text made safe to store and show: API keys masked, terminal controls and invalid Unicode removed."""

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
# What a terminal obeys instead of showing: C0 and C1 controls, bidirectional overrides, Unicode line ends; and lone
# surrogates, which stand for undecodable bytes of file names.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What tokenizers and chat templates may read as special tokens inside a text: `<|im_start|>`, `</s>`, `[INST]`.
SPECIAL_TOKENS = re.compile(r"<[^<>\s]{1,60}>|\[/?(?:INST|SYS\w*)\]")
MIN_KEY = 6  # characters: a shorter key ("EMPTY", "none") is no secret, and may well be part of an answer
CREDENTIALS = re.compile(r"(?<=://)[^\s#]*(?:@|%40)", re.IGNORECASE)  # in an address: `:key@`, `user:password@`
_KEYS: dict[str, re.Pattern[str]] = {}


def keep_secret(key: str, source: str) -> str:
    """Remember a key, so that it is masked in all text from now on; return it.

    Raises:
        UserError: no HTTP header can carry it.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{source} holds a line end, a space or a character that no key has; copy it again")
    if len(key) >= MIN_KEY:
        _KEYS[key] = re.compile("|".join(re.escape(form) for form in _forms(key)), re.IGNORECASE)
    return key


def masked(text: str) -> str:
    """Mask our keys in `text`, in whatever encoding (percent-encoding, JSON escapes, base64)."""
    for pattern in list(_KEYS.values()):
        text = pattern.sub(MASK, text)
    return text


def without_credentials(text: str) -> str:
    """Mask our keys in `text` and whatever precedes the `@` of addresses: for messages."""
    return CREDENTIALS.sub(f"{MASK}@", masked(text))


def printable(text: str) -> str:
    """Make `text` safe for a terminal or a log: keys masked, terminal controls as escapes."""
    clean = without_credentials(text)
    lead = clean[:1] if clean[:1] == "\r" else ""  # a library's progress bar, which overwrites its own line
    return lead + CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), clean[len(lead) :])


def prose(text: str) -> str:
    """Make untrusted text one line for a prompt: no control characters, no line ends that could begin a section of the
    prompt, and nothing that a tokenizer would read as a special token."""
    return " ".join(SPECIAL_TOKENS.sub(" ", CONTROLS.sub(" ", str(cleaned(text)))).split())


class Screen:
    """A stream that writes all text through `printable`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text`; return its length."""
        self.stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class ExceededError(BaseException):
    """The time limit was exceeded. Not an `Exception`, lest the limited code catch it."""


@contextlib.contextmanager
def limited(seconds: float, more_bytes: int | None = None) -> Iterator[None]:
    """Run untrusted Python inside the block for at most `seconds`, with at most `more_bytes` more memory than now.

    Time is limited only in the main thread (by a signal); memory is that of the whole process.

    Raises:
        ExceededError: it took longer.
        MemoryError: it needed more.
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
            with contextlib.suppress(OSError, ValueError):  # not reported by the system, or no more allowed anyway
                with open("/proc/self/statm", encoding="utf-8") as statm:
                    limit = int(statm.read().split()[0]) * resource.getpagesize() + more_bytes
                if soft in (-1, resource.RLIM_INFINITY) or limit < soft:
                    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
                    after.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        yield


@contextlib.contextmanager
def screened() -> Iterator[None]:
    """Send standard output and error through `Screen`s; characters that their encoding lacks become escapes."""
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
    """Return a rich console that passes text through `printable`: only its own colours and cursor moves take effect."""
    from rich.console import Console
    from rich.segment import Segment

    class Shown(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # before it is measured
            return super().render_str(printable(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for part in super().render(renderable, options):
                yield part if part.control else Segment(printable(part.text), part.style)

    stream: Any = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() else width
    file = stream.stream if isinstance(stream, Screen) else stream
    return Shown(file=file, width=wide, markup=False, highlight=False)


def cleaned(value: Any) -> Any:
    """Return a JSON value with our keys masked and lone surrogates replaced, which no file can store."""
    if isinstance(value, str):
        text = value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return masked(text)
    if isinstance(value, dict):
        return {cleaned(name): cleaned(item) for name, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def _forms(key: str) -> Iterator[str]:
    yield from sorted({key, quote(key, safe=""), json.dumps(key)[1:-1]}, key=len, reverse=True)
    for before in range(3):  # bytes before the key in its first base64 group
        bits = 8 * (before + len(key))
        inside = base64.b64encode(bytes(before) + key.encode()).decode()[-(-8 * before // 6) : bits // 6]
        yield from {inside, inside.translate(str.maketrans("+/", "-_"))}
