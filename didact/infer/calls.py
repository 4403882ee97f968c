"""Calls to an OpenAI-compatible server: within a budget, retried while that may help, each answer kept as it comes.

Plain HTTP (`httpx2`) rather than a vendor's client: a deadline for the whole answer and not for each of its pieces,
our own back-off and count of every call that is sent, and answers taken as they are, none filled in or coerced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from didact import untrusted
from didact.errors import BudgetError
from didact.infer import replies, responses
from didact.infer.replies import LackingError, PassingError
from didact.types import UserError

if TYPE_CHECKING:
    import httpx2

BYTES = 3  # of UTF-8 a token: on the safe side for English, about right for other scripts
BACKOFF, LONGEST = 0.5, 30.0  # seconds: the first wait doubles up to the longest
PATIENCE = 300.0  # seconds: a server that asks for a longer wait is left for another day
EVERY = 10.0  # seconds between lines on how it goes
BUSY = (408, 409, 425, 429)  # answers that pass by themselves, as those of 500 and more do
ABSENT = (404, 405, 501)  # answers of servers that have not what was asked for
FIRST = 1  # retries of a first tiny call at which the server fails
LARGEST = 32 << 20  # bytes of an answer, before and after it is unpacked
MOST = 10**9  # tokens: a server that counts more is not believed
PARTING = 2.0  # seconds in which a loop ends what it is told to end
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Limits(NamedTuple):
    """How far calls go: see `remote.connect`."""

    calls: int | None
    tokens: int | None
    timeout: float
    retries: int
    parallel: int


@dataclass
class Counts:
    """What was used. `calls` are requests sent, `retries` and tiny first calls among them; `cached` answers cost none.

    `tokens` are the server's own count of prompts and answers (an estimate where it gives none). `straddled` are
    completions whose first token began inside the prompt (see `Remote.score`). `starved` are empty answers whose tokens
    ran out.
    """

    calls: int = 0
    retries: int = 0
    cached: int = 0
    tokens: int = 0
    straddled: int = 0
    starved: int = 0

    def __str__(self) -> str:
        again = f" ({self.retries:,} of them retries)" if self.retries else ""
        return f"{self.calls:,} calls{again}, {self.tokens:,} tokens, {self.cached:,} answers from the cache"


@dataclass(frozen=True)
class Job:
    """One request and how its answer is read. Servers that take a seed get one; `draw` goes into the cache's key."""

    endpoint: str
    body: Mapping[str, Any]
    parse: Callable[[Any], Any]
    seed: int = 0
    draw: int = 0
    seeded: bool = True

    def read(self, reply: Any) -> Any:
        """What its answer says."""
        return replies.read(self.parse, reply)

    @property
    def whole(self) -> dict[str, Any]:
        """Everything the answer depends on but the draw."""
        return {**self.body, "seed": self.seed}


class RefusedError(Exception):
    """The server will not do this, however often it is asked. `status` is its answer's (0: it was a good one)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class StoppedError(Exception):
    """Another call of the same batch failed for good."""


class Caller:
    """One server's model: calls, their count, their budget, their cache. Threads may share one."""

    def __init__(
        self, url: str, name: str | None, key: str | None, limits: Limits, kept: responses.Responses | None
    ) -> None:
        self.url = url
        self.limits = limits
        self.kept = kept
        self.counts = Counts()
        self._name = name
        self._client = _client(url, key, limits)
        self._slots = threading.Semaphore(limits.parallel)
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._listed: dict[str, Mapping[str, Any]] | None = None
        self._told = -math.inf
        self._loop = asyncio.new_event_loop()
        self.close = weakref.finalize(self, _end, url, self.counts, self._client, kept, self._loop, _turn(self._loop))

    @property
    def name(self) -> str:
        """What the server calls the model.

        Raises:
            UserError: none was given and the server has not exactly one.
        """
        if self._name is None:
            names = list(self.listed())
            if len(names) != 1:
                raise UserError(f"{self.url}: name the model, as {self.url}#NAME; it serves {some(names)}")
            self._name = names[0]
        return self._name

    def listed(self) -> dict[str, Mapping[str, Any]]:
        """The models the server lists, asked once; empty where it lists none."""
        with self._asking:
            if self._listed is None:
                self._listed = {}
                with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
                    try:
                        found = self._fetch("GET", "models")
                    except PassingError as failed:
                        self._tell(f"models: {failed}")
                    else:
                        self._listed = {_line(str(m["id"])): m for m in parsed(found.data)["data"]}
            return self._listed

    def each(self, jobs: Sequence[Job]) -> list[Any]:
        """What every job's answer says, in order: from the cache, else by calls, several at once.

        Whatever ends the batch early, calls under way finish and their answers are kept.

        Raises:
            UserError: the server refuses, does not answer, or the budget is used up.
        """
        keys = [responses.key(self.url, self.name, j.endpoint, j.whole, j.draw) for j in jobs]
        every = dict(zip(keys, jobs, strict=True))
        out = {key: found[0] for key, job in every.items() if (found := self._recall(key, job))}
        cached = len(out)
        with self._lock:
            self.counts.cached += cached
        if cached == len(every):
            return [out[key] for key in keys]
        shown, stop = time.monotonic(), threading.Event()
        with ThreadPoolExecutor(self.limits.parallel) as pool:
            running: dict[Future[Any], str] = {
                pool.submit(self._answer, key, job, stop): key for key, job in every.items() if key not in out
            }
            try:
                for done in as_completed(running):
                    if isinstance(done.exception(), StoppedError):
                        continue  # the failure that stopped it is still to come
                    out[running[done]] = done.result()
                    if time.monotonic() - shown > EVERY:
                        shown = time.monotonic()
                        left = f"{len(out):,} of {len(every):,} answers, {cached:,} from the cache"
                        print(f"{self.url}: {left}", file=sys.stderr)
            except BaseException:
                stop.set()
                for waiting in running:
                    waiting.cancel()
                raise
        return [out[key] for key in keys]

    def call(self, job: Job, stop: threading.Event | None = None, first: bool = False) -> dict[str, Any]:
        """One answer that can be read, tried again while that may help; `first` is a tiny call to see what is there.

        Raises:
            RefusedError: the server will not; of a first call also: its answers lack what was asked for.
            PassingError: the retries are used up.
            UserError: the key is not taken, the budget is used up, or the server asks for too long a wait.
        """
        stop, attempt = stop or threading.Event(), 0
        while True:
            if stop.is_set():
                raise StoppedError
            self._spend(attempt > 0)
            try:
                reply = self._post(job)
                job.read(reply)
                return reply
            except PassingError as failed:
                if first and isinstance(failed, LackingError):
                    raise RefusedError(f"{job.endpoint}: {failed}") from None
                own = first and failed.status and failed.status not in BUSY
                tries = min(self.limits.retries, FIRST) if own else self.limits.retries
                if attempt >= tries:
                    raise PassingError(f"no answer in {attempt + 1} tries, the last: {failed}", failed.status) from None
                doubled = min(LONGEST, BACKOFF * 2**attempt)
                wait = doubled * random.uniform(0.5, 1.0) if failed.wait is None else failed.wait
                attempt += 1
                self._tell(f"{failed}; trying again in {wait:.1f} s ({attempt} of {tries})")
            stop.wait(wait)

    def resume(self) -> str:
        """What becomes of the answers so far."""
        if self.kept is None:
            return "the cache is off, so that no answer is kept"
        return f"every answer so far is kept in {self.kept.path}, and the same command goes on from there"

    def _recall(self, key: str, job: Job) -> tuple[Any] | None:
        """What the kept answer says, or None where there is none that can be read."""
        kept = self.kept.get(key) if self.kept else None
        if self.kept is None or kept is None:
            return None
        try:
            return (self._said(job, kept),)
        except PassingError:
            self.kept.drop(key)
            return None

    def _answer(self, key: str, job: Job, stop: threading.Event) -> Any:
        """Call, and keep the answer at once; what is kept is what counts, should another process have been first."""
        try:
            reply = self.call(job, stop)
        except StoppedError:
            raise
        except Exception as failed:
            stop.set()  # at once, lest another call begins
            if isinstance(failed, RefusedError):
                raise UserError(f"{self.name} at {self.url}: {failed}") from None
            if isinstance(failed, PassingError):
                raise UserError(f"{self.url}: {failed}; {self.resume()}") from None
            raise
        if self.kept:
            reply = self.kept.put(key, self.url, self.name, job.endpoint, job.whole, job.draw, reply)
        return self._said(job, reply)

    def _said(self, job: Job, reply: Any) -> Any:
        """What an answer says; the first that is empty for want of tokens is told."""
        out = job.read(reply)
        if out == "" and replies.starved(reply):
            with self._lock:
                self.counts.starved += 1
                first = self.counts.starved == 1
            if first:
                print(f"{self.url}: {replies.STARVED}", file=sys.stderr)
        return out

    def _spend(self, again: bool) -> None:
        """Count a request about to be sent, or say that the budget is used up."""
        limits, counts = self.limits, self.counts
        with self._lock:
            for used, budget, unit in ((counts.calls, limits.calls, "calls"), (counts.tokens, limits.tokens, "tokens")):
                if budget is not None and used >= budget:
                    raise BudgetError(f"the budget of {budget:,} {unit} is used up: {counts}; {self.resume()}")
            counts.calls += 1
            counts.retries += again

    def _fetch(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> replies.Answer:
        """One exchange, which ends at the deadline wherever it is by then.

        Raises:
            PassingError: no whole answer came in time, or more than `LARGEST` bytes of it.
        """
        import httpx2

        limit = self.limits.timeout
        asked = asyncio.run_coroutine_threadsafe(self._exchange(method, path, body), self._loop)
        try:
            status, headers, data = asked.result(limit + PARTING)
        except TimeoutError:
            asked.cancel()
            raise PassingError(f"no whole answer in {limit:g} s", 0) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            raise PassingError(_why(error), 0) from None
        data = replies.inflated(data, headers.get("content-encoding", ""), LARGEST)
        return replies.Answer(status, data, headers.get("retry-after"))

    async def _exchange(self, method: str, path: str, body: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and bytes as they came. The client's own limits are for each piece, so it has none."""
        data = bytearray()
        async with asyncio.timeout(self.limits.timeout):
            async with self._client.stream(method, f"{self.url}/{path}", json=body) as answer:
                async for piece in answer.aiter_raw():
                    data += piece
                    if len(data) > LARGEST:
                        raise PassingError(f"the answer is longer than {LARGEST >> 20} MiB", answer.status_code)
        return answer.status_code, answer.headers, bytes(data)

    def _post(self, job: Job) -> dict[str, Any]:
        """Send one request; its answer as JSON."""
        body = {"model": self.name, **job.body, **({"seed": job.seed} if job.seeded else {})}
        with self._slots:
            status, data, retry_after = self._fetch("POST", job.endpoint, body)
        if status >= 300:
            self._fail(job.endpoint, status, data, retry_after)
        try:
            reply = parsed(data)
        except ValueError:
            raise PassingError("the answer is cut short or not JSON", status) from None
        if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list) or not reply["choices"]:
            raise PassingError(f"the answer has no choices: {_message(data)}", status)
        usage = reply.get("usage")
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(used, int) or not 1 <= used <= MOST:
            used = estimate(json.dumps(job.body)) + estimate(json.dumps(reply["choices"]))
        with self._lock:
            self.counts.tokens += used
        return reply

    def _fail(self, endpoint: str, status: int, data: bytes, retry_after: str | None) -> NoReturn:
        """Raise what an answer other than 200 means."""
        said = f"{status} {_message(data)}"
        if status in (401, 403):
            raise UserError(f"{self.url}: {said}: give the server's key as `key` or in OPENAI_API_KEY")
        passes = status in BUSY or (status >= 500 and status not in ABSENT)
        if not passes or b"insufficient_quota" in data:  # a 429 that no wait mends
            raise RefusedError(f"{endpoint}: {said}", status)
        wait = _seconds(retry_after)
        if wait is not None and wait > PATIENCE:
            raise UserError(f"{self.url}: {said}: it asks to wait {wait:,.0f} s; {self.resume()}")
        raise PassingError(said, status, wait)

    def _tell(self, text: str) -> None:
        """A line on stderr, at most one in ten seconds."""
        with self._lock:
            if time.monotonic() - self._told < EVERY:
                return
            self._told = time.monotonic()
        print(untrusted.masked(f"{self.url}: {text}"), file=sys.stderr)


def estimate(text: str) -> int:
    """Tokens of a text whose tokenizer is not at hand."""
    return math.ceil(len(text.encode()) / BYTES)


def some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none that it lists"


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds or date as seconds from now."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))  # not a number is 0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _message(data: bytes) -> str:
    """What an error says, as one short line: it is a stranger's text."""
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError):
        told = parsed(data)
        for name in ("error", "detail", "message"):
            told = told[name] if isinstance(told, dict) and name in told else told
        text = told if isinstance(told, str) else json.dumps(told)
    return _line(text)


def _why(error: BaseException) -> str:
    """What is at the bottom of a failed exchange: those on top only say that it failed."""
    while below := error.__cause__ or error.__context__:
        error = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below
    told = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
    return _line(told) or type(error).__name__


def parsed(data: bytes) -> Any:
    """An answer's JSON, cleaned before it is read, kept or shown anywhere.

    Raises:
        ValueError: it is none, or nested so deeply that it is meant to do harm.
    """
    try:
        return untrusted.cleaned(json.loads(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _line(text: str) -> str:
    """A stranger's text in one line: without our keys, which go before the cut that could leave half of one."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in untrusted.masked(text)).split())
    return flat if len(flat) <= 200 else flat[:200] + " ..."


def _client(url: str, key: str | None, limits: Limits) -> httpx2.AsyncClient:
    """A pool of connections; through the environment's proxies unless the server is on this machine."""
    try:
        import httpx2
    except ImportError:
        raise UserError("remote models need httpx2: pip install 'didact[remote]'") from None
    headers = {"Accept-Encoding": "gzip, deflate"} | ({"Authorization": f"Bearer {key}"} if key else {})
    pool = httpx2.Limits(max_connections=limits.parallel, max_keepalive_connections=limits.parallel)
    at = urlsplit(url)
    verify = at.scheme == "https"  # else there is nothing to verify, and reading the certificates takes time
    abroad = at.hostname not in LOOPBACK
    try:
        return httpx2.AsyncClient(headers=headers, timeout=None, limits=pool, verify=verify, trust_env=abroad)
    except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
        why = _line(untrusted.without_credentials(str(error)))
        raise UserError(f"the environment's proxy or certificates (HTTPS_PROXY, SSL_CERT_FILE): {why}") from None


def _turn(loop: asyncio.AbstractEventLoop) -> threading.Thread:
    """Exchanges run in a loop of their own, where a deadline can end them at any point."""
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    return thread


def _end(
    url: str, counts: Counts, client: httpx2.AsyncClient, kept: responses.Responses | None,
    loop: asyncio.AbstractEventLoop, thread: threading.Thread,
) -> None:  # fmt: skip
    """Close everything; answers that came from the cache are told, once."""
    if thread is threading.current_thread():
        loop.stop()
    elif thread.is_alive():  # not in a forked process
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(PARTING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PARTING)
        loop.close()
    if kept is not None:
        if counts.cached:
            print(f"{url}: {counts} {kept.path}", file=sys.stderr)
        kept.close()
