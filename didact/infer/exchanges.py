"""HTTP exchanges with one server, in an event loop of their own, each with a deadline that can end it at any point.

Plain HTTP (`httpx2`) rather than a vendor's client: the deadline holds for the whole answer rather than each of its
chunks, and answers are taken unchanged, with nothing filled in or coerced.
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
LARGEST = 32 << 20  # bytes of an answer, compressed and decompressed
PARTING = 2.0  # seconds that closing connections, and then the loop, may take
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Exchanges:
    """Exchanges with the server at `url`, `parallel` at once, each to end within `timeout` seconds.

    Every exchange in flight has a connection in a client of its own, since a client of many connections scans all of
    them at each exchange. Free clients are reused, the latest first.
    """

    def __init__(self, url: str, key: str | None, timeout: float, parallel: int) -> None:
        self.url = url
        self.timeout = timeout
        self._key = key
        self._verify = _verify(url)
        self._free = [self._client()]  # created now, so that configuration errors surface now
        self._slots = asyncio.Semaphore(parallel)
        self._loop = asyncio.new_event_loop()
        self.close = weakref.finalize(self, _shut_down, self._free, self._loop, _start_thread(self._loop))

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def set(self, event: asyncio.Event) -> None:
        """Set an event that the loop waits for."""
        self._loop.call_soon_threadsafe(event.set)

    async def fetch(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> replies.Answer:
        """Make one exchange, cut off at the deadline.

        Raises:
            PassingError: no complete answer in time, or one of more than `LARGEST` bytes.
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
                raise PassingError(_root_cause(error), 0) from None
            finally:
                self._free.append(client)
        data = replies.inflated(data, headers.get("content-encoding", ""), LARGEST)
        return replies.Answer(status, data, headers.get("retry-after"))

    def _client(self) -> httpx2.AsyncClient:
        """Return a client; it uses the environment's proxies unless the server is on this machine."""
        import httpx2

        headers = {"Accept-Encoding": "gzip, deflate"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        pool = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        remote = _is_remote(self.url)
        try:  # the client's own timeouts are per chunk of an answer, so they are off
            return httpx2.AsyncClient(headers=headers, timeout=None, limits=pool, verify=self._verify, trust_env=remote)
        except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
            raise _environment_error(error) from None


async def _exchange(
    client: httpx2.AsyncClient, method: str, url: str, body: Mapping[str, Any] | None
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and the raw bytes."""
    data = bytearray()
    async with client.stream(method, url, json=body) as answer:
        async for piece in answer.aiter_raw():
            data += piece
            if len(data) > LARGEST:
                raise PassingError(f"the answer is longer than {LARGEST >> 20} MiB", answer.status_code)
    return answer.status_code, answer.headers, bytes(data)


def parsed(data: bytes) -> Any:
    """Parse an answer's JSON, sanitised before it is read, stored or displayed anywhere.

    Raises:
        ValueError: it is not JSON, or nested so deeply that it is likely malicious.
    """
    try:
        return untrusted.cleaned(json.loads(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def message(data: bytes) -> str:
    """Return the message of an error response as one short line: the text is untrusted."""
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError):
        content = parsed(data)
        for name in ("error", "detail", "message"):
            content = content[name] if isinstance(content, dict) and name in content else content
        text = content if isinstance(content, str) else json.dumps(content)
    return line(text)


def line(text: str) -> str:
    """Return untrusted text as one line. Our keys are masked before it is cut, which could leave half of one."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in untrusted.masked(text)).split())
    return flat if len(flat) <= 200 else flat[:200] + " ..."


def _root_cause(error: BaseException) -> str:
    """Return the message of the innermost cause of a failed exchange: outer errors only say that it failed."""
    while cause := error.__cause__ or error.__context__:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    text = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
    return line(text) or type(error).__name__


def _is_remote(url: str) -> bool:
    return urlsplit(url).hostname not in LOOPBACK


def _verify(url: str) -> Any:
    """Load the certificates, which all connections share; none without https, since loading them takes time."""
    try:
        import httpx2
    except ImportError:
        raise UserError("remote models need httpx2: pip install 'didact[remote]'") from None
    try:
        return httpx2.create_ssl_context(trust_env=_is_remote(url)) if urlsplit(url).scheme == "https" else False
    except (ValueError, OSError) as error:
        raise _environment_error(error) from None


def _environment_error(error: Exception) -> UserError:
    reason = line(untrusted.without_credentials(str(error)))
    return UserError(f"the environment's proxy or certificates (HTTPS_PROXY, SSL_CERT_FILE): {reason}")


def _start_thread(loop: asyncio.AbstractEventLoop) -> threading.Thread:
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    return thread


def _shut_down(clients: list[httpx2.AsyncClient], loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close every connection, then the loop."""
    if thread is threading.current_thread():
        loop.stop()
    elif thread.is_alive():  # it is not in a forked process
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(_close_clients(clients), loop).result(PARTING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PARTING)
        loop.close()


async def _close_clients(clients: list[httpx2.AsyncClient]) -> None:
    await asyncio.gather(*(client.aclose() for client in clients))
