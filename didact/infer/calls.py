"""Calls to an OpenAI-compatible server: within a budget, retried while that may help, every answer cached at once.

The back-off is our own, and every request sent is counted. All calls to a server share one event loop: with threads
that compete for the interpreter lock, its answers would wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, NoReturn

from didact import untrusted
from didact.errors import BudgetError
from didact.infer import exchanges, replies, responses
from didact.infer.replies import LackingError, PassingError
from didact.types import UserError

BYTES_PER_TOKEN = 3  # UTF-8, to estimate token counts: conservative for English, about right for other scripts
BACKOFF, MAX_BACKOFF = 0.5, 30.0  # seconds: the first wait, which doubles up to the second
PATIENCE = 300.0  # seconds: where a server asks for a longer wait, the run stops
REPORT_EVERY = 10.0  # seconds between progress lines
BUSY = (408, 409, 425, 429)  # statuses worth a retry, as those from 500 are
ABSENT = (404, 405, 501)  # statuses of servers that lack the endpoint
FIRST_RETRIES = 1  # of a probing call that the server answers with an error
MOST = 10**9  # tokens: larger counts by a server are ignored


class Limits(NamedTuple):
    """Limits on calls: see `remote.connect`."""

    calls: int | None
    tokens: int | None
    timeout: float
    retries: int
    parallel: int


@dataclass
class Counts:
    """Usage. `calls` are requests sent, `retries` and probing calls included; `cached` answers cost none.

    `tokens` are the server's own count of prompts and answers (an estimate where it gives none). `straddled` are
    completions whose first token begins inside the prompt (see `Remote.score`). `starved` are empty answers cut off by
    the token limit.
    """

    calls: int = 0
    retries: int = 0
    cached: int = 0
    tokens: int = 0
    straddled: int = 0
    starved: int = 0

    def __str__(self) -> str:
        retries = f" ({self.retries:,} of them retries)" if self.retries else ""
        return f"{self.calls:,} calls{retries}, {self.tokens:,} tokens, {self.cached:,} answers from the cache"


@dataclass(frozen=True)
class Job:
    """One request and the parser of its answer. Servers that accept a seed get one.

    `draw` is part of the cache key, and so is `weights`, the digest of the weights that the server was given. Without
    `keep` the cache is neither read nor written.
    """

    endpoint: str
    body: Mapping[str, Any]
    parse: Callable[[Any], Any]
    seed: int = 0
    draw: int = 0
    seeded: bool = True
    weights: str = ""
    keep: bool = True

    def read(self, reply: Any) -> Any:
        """Parse an answer."""
        return replies.read(self.parse, reply)

    @property
    def whole(self) -> dict[str, Any]:
        """Everything the answer depends on except the draw."""
        return {**self.body, "seed": self.seed} | ({"weights": self.weights} if self.weights else {})


class RefusedError(Exception):
    """The server refuses, and a retry would not help. `status` is that of its answer (0: the answer was a success)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class StoppedError(Exception):
    """Another call of the same batch failed for good."""


class Caller:
    """A model on a server: its calls with their counts, budget and cache. Thread-safe."""

    def __init__(
        self, url: str, name: str | None, key: str | None, limits: Limits, cache: responses.Responses | None
    ) -> None:
        self.url, self.key = url, key
        self.limits = limits
        self.kept = cache
        self.counts = Counts()
        self._name = name
        self._exchanges = exchanges.Exchanges(url, key, limits.timeout, limits.parallel)
        self._writer = responses.Writer(cache) if cache else None
        self._lock = threading.Lock()
        self._listing_lock = threading.Lock()
        self._listed: dict[str, Mapping[str, Any]] | None = None
        self._last_report = -math.inf
        self.close = weakref.finalize(self, _close, url, self.counts, cache, self._exchanges.close)

    @property
    def name(self) -> str:
        """The server's name for the model.

        Raises:
            UserError: none was given and the server does not list exactly one.
        """
        if self._name is None:
            names = list(self.listed())
            if len(names) != 1:
                raise UserError(f"{self.url}: name the model, as {self.url}#NAME; it serves {some(names)}")
            self._name = names[0]
        return self._name

    def called(self, name: str) -> None:
        """Set the server's name for the model."""
        self._name = name

    def listed(self) -> dict[str, Mapping[str, Any]]:
        """Return the models that the server lists, requested once; empty where it lists none."""
        with self._listing_lock:
            if self._listed is None:
                self._listed = {}
                with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
                    try:
                        answer = self._exchanges.start(self._exchanges.fetch("GET", "models")).result()
                    except PassingError as error:
                        self._report(f"models: {error}")
                    else:
                        self._listed = {exchanges.line(str(m["id"])): m for m in exchanges.parsed(answer.data)["data"]}
            return self._listed

    def each(self, jobs: Sequence[Job]) -> list[Any]:
        """Return every job's parsed answer in order, from the cache or by concurrent calls.

        Whatever ends the batch early, calls in flight finish and their answers are cached.

        Raises:
            UserError: the server refuses, does not answer, or the budget is used up.
        """
        name = self.name
        keys = [responses.key(self.url, name, j.endpoint, j.whole, j.draw) for j in jobs]
        unique = dict(zip(keys, jobs, strict=True))
        out = self._load_cached(unique)
        with self._lock:
            self.counts.cached += len(out)
        if len(out) < len(unique):
            self._run({key: job for key, job in unique.items() if key not in out}, out)
        return [out[key] for key in keys]

    def first(self, job: Job) -> dict[str, Any]:
        """Return the answer to a tiny call that probes what the server supports.

        Raises:
            RefusedError: the server refuses, or its answer lacks what was requested.
            PassingError: the retries are used up.
            UserError: as in `each`.
        """
        return self._exchanges.start(self._call(self.name, job, asyncio.Event(), first=True)).result()

    def resume(self) -> str:
        """Return a clause, for messages, on where the answers so far are cached."""
        if self.kept is None:
            return "the cache is off, so that no answer is kept"
        return f"every answer so far is kept in {self.kept.path}, and the same command goes on from there"

    def _load_cached(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """Return the parsed cached answers; drop those that cannot be parsed."""
        out: dict[str, Any] = {}
        if self.kept is None:
            return out
        for key, reply in self.kept.get([key for key, job in jobs.items() if job.keep]).items():
            try:
                out[key] = self._parse(jobs[key], reply)
            except PassingError:
                self.kept.drop(key)
        return out

    def _run(self, jobs: Mapping[str, Job], out: dict[str, Any]) -> None:
        """Answer every job into `out`; print the progress now and then."""
        stop, cached, total = asyncio.Event(), len(out), len(out) + len(jobs)
        answers = self._exchanges.start(self._answer_all(self.name, jobs, out, stop))
        try:
            while not futures.wait([answers], REPORT_EVERY).done:
                progress = f"{len(out):,} of {total:,} answers, {cached:,} from the cache"
                print(f"{self.url}: {progress}", file=sys.stderr)
        except BaseException:
            self._exchanges.set(stop)
            futures.wait([answers])
            raise
        answers.result()

    async def _answer_all(self, name: str, jobs: Mapping[str, Job], out: dict[str, Any], stop: asyncio.Event) -> None:
        """Answer jobs concurrently until all are done or one fails for good."""
        queue = iter(jobs.items())
        failures: list[Exception] = []

        async def work() -> None:
            for key, job in queue:  # shared: each worker takes the next
                try:
                    out[key] = await self._answer(name, key, job, stop)
                except StoppedError:
                    return
                except Exception as error:
                    stop.set()
                    failures.append(error)

        await asyncio.gather(*(work() for _ in range(min(self.limits.parallel, len(jobs)))))
        if failures:
            raise failures[0]

    async def _call(self, name: str, job: Job, stop: asyncio.Event, first: bool = False) -> dict[str, Any]:
        """Return an answer that can be parsed, retrying while that may help; `first` marks a probing call."""
        attempt = 0
        while True:
            if stop.is_set():
                raise StoppedError
            self._count_request(attempt > 0)
            try:
                reply = await self._post(name, job)
                job.read(reply)
                return reply
            except PassingError as error:
                if first and isinstance(error, LackingError):
                    raise RefusedError(f"{job.endpoint}: {error}") from None
                failing = first and error.status and error.status not in BUSY
                tries = min(self.limits.retries, FIRST_RETRIES) if failing else self.limits.retries
                if attempt >= tries:
                    raise PassingError(f"no answer in {attempt + 1} tries, the last: {error}", error.status) from None
                backoff = min(MAX_BACKOFF, BACKOFF * 2**attempt)
                wait = backoff * random.uniform(0.5, 1.0) if error.wait is None else error.wait
                attempt += 1
                self._report(f"{error}; trying again in {wait:.1f} s ({attempt} of {tries})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait)

    async def _answer(self, name: str, key: str, job: Job, stop: asyncio.Event) -> Any:
        """Call and cache the answer at once; an answer that another process cached first replaces it."""
        try:
            reply = await self._call(name, job, stop)
        except RefusedError as error:
            raise UserError(f"{name} at {self.url}: {error}") from None
        except PassingError as error:
            raise UserError(f"{self.url}: {error}; {self.resume()}") from None
        if self._writer and job.keep:
            reply = await self._writer.put(
                responses.CachedAnswer(key, self.url, name, job.endpoint, job.whole, job.draw, reply)
            )
        try:  # the writer's reply is another process's where that was faster, and was never parsed here
            return self._parse(job, reply)
        except PassingError as error:
            raise UserError(f"{self.url}: {error}; {self.resume()}") from None

    def _parse(self, job: Job, reply: Any) -> Any:
        """Parse an answer; warn at the first that is empty because its tokens ran out."""
        out = job.read(reply)
        if out == "" and replies.starved(reply):
            with self._lock:
                self.counts.starved += 1
                first = self.counts.starved == 1
            if first:
                print(f"{self.url}: {replies.STARVED}", file=sys.stderr)
        return out

    def _count_request(self, retry: bool) -> None:
        """Count a request that is about to be sent; raise `BudgetError` where the budget is used up."""
        limits, counts = self.limits, self.counts
        with self._lock:
            for used, budget, unit in ((counts.calls, limits.calls, "calls"), (counts.tokens, limits.tokens, "tokens")):
                if budget is not None and used >= budget:
                    raise BudgetError(f"the budget of {budget:,} {unit} is used up: {counts}; {self.resume()}")
            counts.calls += 1
            counts.retries += retry

    async def _post(self, name: str, job: Job) -> dict[str, Any]:
        """Send one request and return its answer, decoded from JSON."""
        body = {"model": name, **job.body, **({"seed": job.seed} if job.seeded else {})}
        status, data, retry_after = await self._exchanges.fetch("POST", job.endpoint, body)
        if status >= 300:
            self._fail(job.endpoint, status, data, retry_after)
        try:
            reply = exchanges.parsed(data)
        except ValueError:
            raise PassingError("the answer is cut short or not JSON", status) from None
        if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list) or not reply["choices"]:
            raise PassingError(f"the answer has no choices: {exchanges.message(data)}", status)
        usage = reply.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int) or not 1 <= tokens <= MOST:
            tokens = estimate(json.dumps(job.body)) + estimate(json.dumps(reply["choices"]))
        with self._lock:
            self.counts.tokens += tokens
        return reply

    def _fail(self, endpoint: str, status: int, data: bytes, retry_after: str | None) -> NoReturn:
        """Raise the error that an answer with an error status stands for."""
        reason = f"{status} {exchanges.message(data)}"
        if status in (401, 403):
            raise UserError(f"{self.url}: {reason}: give the server's key as `key` or in OPENAI_API_KEY")
        retryable = status in BUSY or (status >= 500 and status not in ABSENT)
        if not retryable or b"insufficient_quota" in data:  # a 429 that waiting does not cure
            raise RefusedError(f"{endpoint}: {reason}", status)
        wait = _seconds(retry_after)
        if wait is not None and wait > PATIENCE:
            raise UserError(f"{self.url}: {reason}: it asks to wait {wait:,.0f} s; {self.resume()}")
        raise PassingError(reason, status, wait)

    def _report(self, text: str) -> None:
        """Print a line on stderr, at most one every `REPORT_EVERY` seconds."""
        with self._lock:
            if time.monotonic() - self._last_report < REPORT_EVERY:
                return
            self._last_report = time.monotonic()
        print(untrusted.masked(f"{self.url}: {text}"), file=sys.stderr)


def estimate(text: str) -> int:
    """Estimate the token count of a text whose tokenizer is not available."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def some(names: Sequence[str]) -> str:
    """Join the first ten names and the number of the others."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none that it lists"


def _seconds(retry_after: str | None) -> float | None:
    """Return the header's seconds or date as seconds from now."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))  # NaN gives 0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _close(url: str, counts: Counts, cache: responses.Responses | None, close: Callable[[], Any]) -> None:
    """Close everything; print the counts where answers came from the cache."""
    close()
    if cache is not None:
        if counts.cached:
            print(f"{url}: {counts} {cache.path}", file=sys.stderr)
        cache.close()
