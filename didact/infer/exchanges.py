"""HTTP exchanges with one server, in a loop of their own, where a deadline can end each at any point.

Plain HTTP (`httpx2`) rather than a vendor's client: a deadline for the whole answer and not for each of its pieces,
and answers taken as they are, none filled in or coerced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from didact import untrusted
from didact.infer import replies
from didact.infer.replies import PassingError
from didact.types import UserError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
LARGEST = 32 << 20  # bytes of an answer, before and after it is unpacked
PARTING = 2.0  # seconds in which a loop ends what it is told to end
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Exchanges:
    """Exchanges with the server at `url`, `parallel` at once, each to end within `timeout` seconds.

    Every one under way has a connection of its own, in a client of its own: a client of many connections looks through
    all of them at each exchange. Those that are free are taken again, the latest first.
    """

    def __init__(self, url: str, key: str | None, timeout: float, parallel: int) -> None:
        self.url = url
        self.timeout = timeout
        self._key = key
        self._verify = _verify(url)
        self._free = [self._client()]  # made now, that what is wrong is told now
        self._slots = asyncio.Semaphore(parallel)
        self._loop = asyncio.new_event_loop()
        self.close = weakref.finalize(self, _end, self._free, self._loop, _turn(self._loop))

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the loop do `work`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def set(self, event: asyncio.Event) -> None:
        """Set an event that the loop waits for."""
        self._loop.call_soon_threadsafe(event.set)

    async def fetch(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> replies.Answer:
        """One exchange, which ends at the deadline wherever it is by then.

        Raises:
            PassingError: no whole answer came in time, or more than `LARGEST` bytes of it.
        """
        import httpx2

        async with self._slots:
            client = self._free.pop() if self._free else self._client()
            try:
                async with asyncio.timeout(self.timeout):
                    status, headers, data = await _exchange(client, method, f"{self.url}/{path}", body)
            except TimeoutError:
                raise PassingError(f"no whole answer in {self.timeout:g} s", 0) from None
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
                raise PassingError(_why(error), 0) from None
            finally:
                self._free.append(client)
        data = replies.inflated(data, headers.get("content-encoding", ""), LARGEST)
        return replies.Answer(status, data, headers.get("retry-after"))

    def _client(self) -> httpx2.AsyncClient:
        """A connection; through the environment's proxies unless the server is on this machine."""
        import httpx2

        headers = {"Accept-Encoding": "gzip, deflate"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        one = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        abroad = _abroad(self.url)
        try:  # the client's own limits are for each piece of an answer, so it has none
            return httpx2.AsyncClient(headers=headers, timeout=None, limits=one, verify=self._verify, trust_env=abroad)
        except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
            raise _misled(error) from None


async def _exchange(
    client: httpx2.AsyncClient, method: str, url: str, body: Mapping[str, Any] | None
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and bytes as they came."""
    data = bytearray()
    async with client.stream(method, url, json=body) as answer:
        async for piece in answer.aiter_raw():
            data += piece
            if len(data) > LARGEST:
                raise PassingError(f"the answer is longer than {LARGEST >> 20} MiB", answer.status_code)
    return answer.status_code, answer.headers, bytes(data)


def parsed(data: bytes) -> Any:
    """An answer's JSON, cleaned before it is read, kept or shown anywhere.

    Raises:
        ValueError: it is none, or nested so deeply that it is meant to do harm.
    """
    try:
        return untrusted.cleaned(json.loads(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def message(data: bytes) -> str:
    """What an error says, as one short line: it is a stranger's text."""
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError):
        told = parsed(data)
        for name in ("error", "detail", "message"):
            told = told[name] if isinstance(told, dict) and name in told else told
        text = told if isinstance(told, str) else json.dumps(told)
    return line(text)


def line(text: str) -> str:
    """A stranger's text in one line: without our keys, which go before the cut that could leave half of one."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in untrusted.masked(text)).split())
    return flat if len(flat) <= 200 else flat[:200] + " ..."


def _why(error: BaseException) -> str:
    """What is at the bottom of a failed exchange: those on top only say that it failed."""
    while below := error.__cause__ or error.__context__:
        error = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below
    told = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
    return line(told) or type(error).__name__


def _abroad(url: str) -> bool:
    return urlsplit(url).hostname not in LOOPBACK


def _verify(url: str) -> Any:
    """The certificates that all connections share; without https there is nothing to verify, and reading takes time."""
    try:
        import httpx2
    except ImportError:
        raise UserError("remote models need httpx2: pip install 'didact[remote]'") from None
    try:
        return httpx2.create_ssl_context(trust_env=_abroad(url)) if urlsplit(url).scheme == "https" else False
    except (ValueError, OSError) as error:
        raise _misled(error) from None


def _misled(error: Exception) -> UserError:
    why = line(untrusted.without_credentials(str(error)))
    return UserError(f"the environment's proxy or certificates (HTTPS_PROXY, SSL_CERT_FILE): {why}")


def _turn(loop: asyncio.AbstractEventLoop) -> threading.Thread:
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    return thread


def _end(clients: list[httpx2.AsyncClient], loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close every connection, then the loop."""
    if thread is threading.current_thread():
        loop.stop()
    elif thread.is_alive():  # not in a forked process
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(_part(clients), loop).result(PARTING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PARTING)
        loop.close()


async def _part(clients: list[httpx2.AsyncClient]) -> None:
    await asyncio.gather(*(client.aclose() for client in clients))
