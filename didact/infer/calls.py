"""Calls to an OpenAI-compatible server: within a budget, retried while that may help, each answer kept as it comes.

Our own back-off, and a count of every call that is sent. All calls of a server turn in one loop: threads that take
turns at the interpreter keep its answers waiting.
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

BYTES = 3  # of UTF-8 a token: on the safe side for English, about right for other scripts
BACKOFF, LONGEST = 0.5, 30.0  # seconds: the first wait doubles up to the longest
PATIENCE = 300.0  # seconds: a server that asks for a longer wait is left for another day
EVERY = 10.0  # seconds between lines on how it goes
BUSY = (408, 409, 425, 429)  # answers that pass by themselves, as those of 500 and more do
ABSENT = (404, 405, 501)  # answers of servers that have not what was asked for
FIRST = 1  # retries of a first tiny call at which the server fails
MOST = 10**9  # tokens: a server that counts more is not believed


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
    """One request and how its answer is read. Servers that take a seed get one.

    `draw` goes into the cache's key, and so does `weights`, the digest of what the server was given to answer by. One
    not to `keep` is asked whatever is kept.
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
        """What its answer says."""
        return replies.read(self.parse, reply)

    @property
    def whole(self) -> dict[str, Any]:
        """Everything the answer depends on but the draw."""
        return {**self.body, "seed": self.seed} | ({"weights": self.weights} if self.weights else {})


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
        self.url, self.key = url, key
        self.limits = limits
        self.kept = kept
        self.counts = Counts()
        self._name = name
        self._exchanges = exchanges.Exchanges(url, key, limits.timeout, limits.parallel)
        self._writer = responses.Writer(kept) if kept else None
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._listed: dict[str, Mapping[str, Any]] | None = None
        self._told = -math.inf
        self.close = weakref.finalize(self, _end, url, self.counts, kept, self._exchanges.close)

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

    def called(self, name: str) -> None:
        """Take this as what the server calls the model."""
        self._name = name

    def listed(self) -> dict[str, Mapping[str, Any]]:
        """The models the server lists, asked once; empty where it lists none."""
        with self._asking:
            if self._listed is None:
                self._listed = {}
                with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
                    try:
                        found = self._exchanges.start(self._exchanges.fetch("GET", "models")).result()
                    except PassingError as failed:
                        self._tell(f"models: {failed}")
                    else:
                        self._listed = {exchanges.line(str(m["id"])): m for m in exchanges.parsed(found.data)["data"]}
            return self._listed

    def each(self, jobs: Sequence[Job]) -> list[Any]:
        """What every job's answer says, in order: from the cache, else by calls, several at once.

        Whatever ends the batch early, calls under way finish and their answers are kept.

        Raises:
            UserError: the server refuses, does not answer, or the budget is used up.
        """
        name = self.name
        keys = [responses.key(self.url, name, j.endpoint, j.whole, j.draw) for j in jobs]
        every = dict(zip(keys, jobs, strict=True))
        out = self._recall(every)
        with self._lock:
            self.counts.cached += len(out)
        if len(out) < len(every):
            self._all({key: job for key, job in every.items() if key not in out}, out)
        return [out[key] for key in keys]

    def first(self, job: Job) -> dict[str, Any]:
        """The answer to a tiny call that shows what the server has.

        Raises:
            RefusedError: the server will not, or its answers lack what was asked for.
            PassingError: the retries are used up.
            UserError: as in `each`.
        """
        return self._exchanges.start(self._call(self.name, job, asyncio.Event(), first=True)).result()

    def resume(self) -> str:
        """What becomes of the answers so far."""
        if self.kept is None:
            return "the cache is off, so that no answer is kept"
        return f"every answer so far is kept in {self.kept.path}, and the same command goes on from there"

    def _recall(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """What those kept answers say that can be read."""
        out: dict[str, Any] = {}
        if self.kept is None:
            return out
        for key, kept in self.kept.get([key for key, job in jobs.items() if job.keep]).items():
            try:
                out[key] = self._said(jobs[key], kept)
            except PassingError:
                self.kept.drop(key)
        return out

    def _all(self, jobs: Mapping[str, Job], out: dict[str, Any]) -> None:
        """Have every job answered into `out`; how it goes is told now and then."""
        stop, cached, wanted = asyncio.Event(), len(out), len(out) + len(jobs)
        asked = self._exchanges.start(self._answers(self.name, jobs, out, stop))
        try:
            while not futures.wait([asked], EVERY).done:
                left = f"{len(out):,} of {wanted:,} answers, {cached:,} from the cache"
                print(f"{self.url}: {left}", file=sys.stderr)
        except BaseException:
            self._exchanges.set(stop)
            futures.wait([asked])
            raise
        asked.result()

    async def _answers(self, name: str, jobs: Mapping[str, Job], out: dict[str, Any], stop: asyncio.Event) -> None:
        """Several jobs at once, until all are answered or one fails for good."""
        left = iter(jobs.items())
        failures: list[Exception] = []

        async def work() -> None:
            for key, job in left:  # each takes the next
                try:
                    out[key] = await self._answer(name, key, job, stop)
                except StoppedError:
                    return
                except Exception as failed:
                    stop.set()
                    failures.append(failed)

        await asyncio.gather(*(work() for _ in range(min(self.limits.parallel, len(jobs)))))
        if failures:
            raise failures[0]

    async def _call(self, name: str, job: Job, stop: asyncio.Event, first: bool = False) -> dict[str, Any]:
        """One answer that can be read, tried again while that may help; `first` is a tiny call to see what is there."""
        attempt = 0
        while True:
            if stop.is_set():
                raise StoppedError
            self._spend(attempt > 0)
            try:
                reply = await self._post(name, job)
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
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait)

    async def _answer(self, name: str, key: str, job: Job, stop: asyncio.Event) -> Any:
        """Call, and keep the answer at once; what is kept is what counts, should another process have been first."""
        try:
            reply = await self._call(name, job, stop)
        except RefusedError as failed:
            raise UserError(f"{name} at {self.url}: {failed}") from None
        except PassingError as failed:
            raise UserError(f"{self.url}: {failed}; {self.resume()}") from None
        if self._writer and job.keep:
            reply = await self._writer.put(
                responses.Kept(key, self.url, name, job.endpoint, job.whole, job.draw, reply)
            )
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

    async def _post(self, name: str, job: Job) -> dict[str, Any]:
        """Send one request; its answer as JSON."""
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
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(used, int) or not 1 <= used <= MOST:
            used = estimate(json.dumps(job.body)) + estimate(json.dumps(reply["choices"]))
        with self._lock:
            self.counts.tokens += used
        return reply

    def _fail(self, endpoint: str, status: int, data: bytes, retry_after: str | None) -> NoReturn:
        """Raise what an answer other than 200 means."""
        said = f"{status} {exchanges.message(data)}"
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


def _end(url: str, counts: Counts, kept: responses.Responses | None, close: Callable[[], Any]) -> None:
    """Close everything; answers that came from the cache are told, once."""
    close()
    if kept is not None:
        if counts.cached:
            print(f"{url}: {counts} {kept.path}", file=sys.stderr)
        kept.close()
