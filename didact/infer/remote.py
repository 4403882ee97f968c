"""A model behind an OpenAI-compatible server, as an `LM`: `didact.connect`.

Servers differ in what they offer and seldom say so (some ignore what they do not know), so that every capability
is found out by a first tiny call whose answer is looked at. Every answer is kept as it comes (`infer.responses`),
so that a run that was killed, or whose budget or server gave out, goes on from there when it is started again.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from didact import untrusted
from didact.data import chat, encode
from didact.infer import calls, replies, responses
from didact.infer import lm as local
from didact.infer.addresses import check_address as check_address
from didact.infer.addresses import is_address as is_address
from didact.infer.calls import Job
from didact.models import load
from didact.types import LM, Likelihood, Messages, UserError

CONTEXT = 4096  # tokens, where a server does not tell
CONTEXTS = ("max_model_len", "context_length", "context_window", "n_ctx", "n_ctx_train")  # names it goes by
AGAIN = 86400.0  # seconds after which what a server could not do is asked for again
STOPS = 4  # stop strings that every server takes
COMPLETIONS, CHAT = "completions", "chat/completions"
WAYS = {
    "generate": (f"{COMPLETIONS} text", f"{CHAT} text"),
    "chat": (f"{CHAT} text",),
    "top_logprobs": (f"{COMPLETIONS} top", f"{CHAT} top"),
    "score": (f"{COMPLETIONS} echo",),
}


def named(who: str) -> LM:
    """A model by a served model's address, a folder or a hub id."""
    return connect(who) if is_address(who) else local.of(load.load(who))


def connect(
    url: str,
    name: str | None = None,
    *,
    key: str | None = None,
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
    timeout: float = 60,
    retries: int = 6,
    parallel: int = 4,
    cache: bool = True,
    context: int | None = None,
) -> Remote:
    """A model behind an OpenAI-compatible server (vLLM, llama.cpp, `transformers serve`, hosted ones).

    Nothing is sent before the first use. Example: `didact.connect("http://localhost:8000/v1", "my-model")`.

    Args:
        url: the address, mostly ending in `/v1`; `url#name` says both.
        name: what the server calls the model; a server of one model needs none.
        key: sent as the bearer token; the variable OPENAI_API_KEY where not given, else none.
        budget_calls: calls at most, every retry and first tiny call counted; answers from the cache are free.
        budget_tokens: tokens of prompts and answers at most. Looked at before each call, so that the calls
            under way (`parallel`) can still pass it.
        timeout: seconds for the whole of an answer, connecting and headers among them.
        retries: of a call that meets 429, 5xx, silence or an answer cut short; waits double from half a second.
        parallel: calls under way at once.
        cache: keep answers and use those that are kept; `DIDACT_CACHE=off` turns it off for all.
        context: most tokens of prompt and answer; asked of the server where not given, else 4,096.

    Raises:
        UserError: the address or a number is wrong, or the extra `remote` is missing.
    """
    url, _, named = url.partition("#")
    for option, number in (("budget_calls", budget_calls), ("budget_tokens", budget_tokens), ("retries", retries)):
        if number is not None and number < 0:
            raise UserError(f"{option} = {number}: must be 0 or more")
    if not timeout > 0 or parallel < 1:
        raise UserError(f"timeout = {timeout}, parallel = {parallel}: both must be above 0")
    check_address(url)
    limits = calls.Limits(budget_calls, budget_tokens, timeout, retries, parallel)
    where = responses.place() if cache else None
    kept = responses.Responses(where) if where else None
    secret = key or os.environ.get("OPENAI_API_KEY")
    if secret:
        untrusted.keep_secret(secret, "`key`" if key else "the variable OPENAI_API_KEY")
    return Remote(calls.Caller(url.rstrip("/"), name or named or None, secret, limits, kept), context)


@dataclass(frozen=True)
class Found:
    """What a first tiny call showed: how to ask, or None and why not; `served` is the model's name there."""

    how: dict[str, Any] | None
    why: str = ""
    status: int = 0
    served: str | None = None


class Remote:
    """A served model; made by `connect`. Its `counts` say what was used and what came from the cache.

    One answer is one call: prompts are not batched and `n` is not sent, since servers differ in both. Threads may
    share one, processes the cache.
    """

    def __init__(self, caller: calls.Caller, context: int | None = None) -> None:
        self.caller = caller
        self._context = context
        self._finding = threading.RLock()
        self._found: dict[str, Found] = {}

    @property
    def name(self) -> str:
        """What the server calls the model."""
        return self.caller.name

    @property
    def address(self) -> str:
        """Server and model, as `connect` takes them."""
        return f"{self.caller.url}#{self.name}"

    def fingerprint(self) -> str:
        """What tells it from another: its weights cannot be seen."""
        return self.address

    @property
    def counts(self) -> calls.Counts:
        """Calls, retries, tokens and answers from the cache so far."""
        return self.caller.counts

    @property
    def capabilities(self) -> frozenset[str]:
        """What this server turns out to offer for this model; asks for whatever is not known yet."""
        return frozenset(what for what in local.SERVED if self.lacks(what) is None)

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion: as given, as the server lists it, else 4,096."""
        if self._context is None:
            listed = self.caller.listed().get(self.name, {})
            meta = listed.get("meta")
            told = {**(meta if isinstance(meta, dict) else {}), **listed}
            lengths = (told.get(name) for name in CONTEXTS)
            self._context = next((n for n in lengths if type(n) is int and 0 < n <= calls.MOST), CONTEXT)
        return self._context

    def lacks(self, what: str) -> str | None:
        """Why it cannot do `what`, or None where it can; finds out about this alone."""
        if what not in local.SERVED:
            return f"{self.caller.url} is a server, which gives no {what}: load the weights (--model DIR)"
        try:
            self._way(what)
        except calls.RefusedError as refused:
            return str(refused)
        return None

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """An estimate: a token for every 3 bytes of UTF-8, since the tokenizer stays at the server."""
        return [calls.estimate(text) for text in texts]

    def close(self) -> None:
        """Close connections and cache; also done when the process ends."""
        self.caller.close()

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """`n` completions of every prompt, cut before the first of `stop`, without white space around them.

        Through `completions` where the server has it, else through `chat` with the prompt as the user's turn; a
        conversation (`Messages`) the other way round. Draws have the seeds `seed`, `seed + 1`, ..., and prompts that
        are equal do not share them; at temperature 0 one call serves all. A prompt too long for the context is
        refused by the server.

        Raises:
            UserError: the server refuses, does not answer, or the budget is used up.
        """
        more = _sampling(temperature, top_p) | ({"stop": list(stop[:STOPS])} if stop else {})
        ways = self._ways("generate", prompts)
        asked = [partial(_ask, p, how, max_new_tokens, more, seed) for p, how in zip(prompts, ways, strict=True)]
        drawn = self._draws(prompts, asked, n, temperature == 0)
        return [[local.cut(text, stop) for text in texts] for texts in drawn]

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """`n` replies to every conversation, by the server's own template. Draws and errors as in `generate`."""
        how = self._ready("chat")
        prompts = [Messages(c) for c in conversations]
        asked = [partial(_ask, p, how, max_new_tokens, _sampling(temperature, 1.0), seed) for p in prompts]
        drawn = self._draws(prompts, asked, n, temperature == 0)
        return [[text.strip() for text in texts] for texts in drawn]

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> list[dict[str, float]]:
        """The likeliest next tokens of every prompt, likeliest first: `k`, or as many as the server gives (20, or 5).

        Through `completions` where it gives them, else `chat`, where they begin the reply to the prompt as the
        user's turn. Tokens of the same text are added up.

        Raises:
            UserError: the server gives none, or as in `generate`.
        """
        ways = self._ways("top_logprobs", prompts)
        return self.caller.each([_ask_top(p, how, k) for p, how in zip(prompts, ways, strict=True)])

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Likelihood of every (prompt, completion), where the server echoes a text with its log-probs.

        The server tokenises prompt and completion as one text, joined and cut as a local model's are
        (`encode.join`, `encode.cut`). The completion's tokens are those that make up its text at the end; where that
        cannot be told from the text (characters split over tokens), those after what the text shares with the prompt
        alone, which costs a second call. A token that begins in the prompt and ends in the completion counts with the
        completion, whole: its log-prob is then also that of the prompt's last characters. `counts.straddled` counts
        such completions.

        Raises:
            UserError: the server gives no log-probs of prompts, or as in `generate`; an empty completion; a text
                of one token.
        """
        how = self._ready("score")
        texts = [encode.cut(prompt, encode.join(prompt, completion, "causal")) for prompt, completion in pairs]
        if not all(completion for _, completion in pairs):
            raise UserError("the completion is empty: nothing to learn or score")
        echoes = self.caller.each([_ask_echo(prompt + body, how) for prompt, body in texts])
        borders = [_border(echo, *text) for echo, text in zip(echoes, texts, strict=True)]
        unclear = list(dict.fromkeys(p for (p, _), found in zip(texts, borders, strict=True) if found is None))
        alone = dict(zip(unclear, self.caller.each([_ask_echo(p, how) for p in unclear]), strict=True))
        out = []
        for (prompt, _), echo, found in zip(texts, echoes, borders, strict=True):
            border = found or replies.shared(alone[prompt].tokens, echo.tokens)
            # The first token of all is read, not predicted, and has no log-prob.
            counted = [logp for logp in echo.logps[border.at :] if logp is not None]
            if not counted:
                raise UserError("the text is one token, which nothing precedes: nothing to learn or score")
            out.append(Likelihood(math.fsum(counted), len(counted)))
            self.counts.straddled += not border.clean
        return out

    def _draws(
        self, prompts: Sequence[str], asked: Sequence[Callable[[int], Job]], n: int, greedy: bool
    ) -> list[list[str]]:
        """`n` draws of every prompt; an equal prompt takes the draws after its twin's, and greedy ones are one."""
        seen: Counter[str] = Counter()
        jobs = []
        for prompt, job in zip(prompts, asked, strict=True):
            jobs += [job(0 if greedy else seen[prompt] * n + d) for d in range(n)]
            seen[prompt] += 1
        texts = self.caller.each(jobs)
        return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _ways(self, what: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """How to ask for `what`, prompt by prompt: conversations go to `chat` first."""
        kinds = [isinstance(p, Messages) for p in prompts]
        ways = {kind: self._ready(what, kind) for kind in sorted(set(kinds))}
        return [ways[kind] for kind in kinds]

    def _ready(self, what: str, conversation: bool = False) -> dict[str, Any]:
        """How to ask for `what`; one line where it cannot be asked for."""
        try:
            return self._way(what, conversation)
        except calls.RefusedError as refused:
            raise UserError(f"{self.name} at {self.caller.url} does not offer {what}: {refused}") from None

    def _way(self, what: str, conversation: bool = False) -> dict[str, Any]:
        """How to ask for `what`, by the first way that works; raises `RefusedError` where none does."""
        refusals = []
        for way in reversed(WAYS[what]) if conversation else WAYS[what]:
            found = self._find(way)
            if found.how is not None:
                return found.how
            refusals.append(found)
        lost = all(found.status == 404 for found in refusals) and not self.caller.url.endswith("/v1")
        hint = "; most addresses end in /v1" if lost else ""
        raise calls.RefusedError("; ".join(found.why for found in refusals) + hint)

    def _find(self, way: str) -> Found:
        """Whether one way works: as known, as kept, else by a first tiny call.

        That something works is kept; that it does not, for a day; that the server failed, not at all.
        """
        kept, caller = self.caller.kept, self.caller
        with self._finding:
            if way in self._found:
                return self._found[way]
            key = responses.key(caller.url, self.name, "first", {"way": way}, 0)
            told = kept.get([key]).get(key) if kept else None
            if told and (told["found"]["how"] or time.time() - told["made"] < AGAIN):
                self._found[way] = Found(**told["found"])
                return self._found[way]
            try:
                self._found[way] = self._try(way)
            except replies.PassingError as failed:
                if not failed.status or failed.status in calls.BUSY:
                    raise UserError(f"{caller.url}: {failed}; {caller.resume()}") from None
                return Found(None, f"{way.split()[0]}: {failed}", failed.status)
            if kept:
                kept.drop(key)
                told = {"found": asdict(self._found[way]), "made": time.time()}
                kept.put([responses.Kept(key, caller.url, self.name, "first", {"way": way}, 0, told)])
            return self._found[way]

    def _try(self, way: str) -> Found:
        """Ask in the forms of one way until one is answered well; some servers fail at a form they do not know."""
        last: calls.RefusedError | replies.PassingError = calls.RefusedError("")
        for how, job, after in _forms(way):
            if last.status in calls.ABSENT or after not in str(last):
                continue
            try:
                reply = self.caller.first(job)
                return Found(how, served=str(reply.get("model")))
            except calls.RefusedError as refused:
                last = refused
            except replies.PassingError as failed:
                if not failed.status or failed.status in calls.BUSY:
                    raise
                last = failed
        if isinstance(last, replies.PassingError):
            raise last
        if last.status and way.endswith("text") and self.name not in (names := list(self.caller.listed())) and names:
            raise UserError(f"{self.caller.url}: {last}; it serves {calls.some(names)}")
        return Found(None, str(last), last.status)


def _ask(prompt: str, how: Mapping[str, Any], limit: int, more: Mapping[str, Any], seed: int, draw: int) -> Job:
    """The request for a continuation of `prompt`, or for the reply to it."""
    spoken = prompt.turns if isinstance(prompt, Messages) else ({"role": "user", "content": prompt},)
    turns = list(map(chat.with_text, spoken))
    asked: dict[str, Any] = {"messages": turns} if how["endpoint"] == CHAT else {"prompt": str(prompt)}
    if "messages" in asked and isinstance(prompt, Messages) and prompt.tools:
        asked["tools"] = list(prompt.tools)
    body = {**asked, how["limit"]: limit, **more}
    return Job(how["endpoint"], body, replies.text_of, seed + draw, draw, how["seeded"])


def _ask_top(prompt: str, how: Mapping[str, Any], k: int) -> Job:
    """The request for the likeliest first tokens."""
    most = min(k, how["most"])
    more = {"logprobs": True, "top_logprobs": most} if how["endpoint"] == CHAT else {"logprobs": most}
    job = _ask(prompt, how, 1, _sampling(0.0, 1.0) | more, 0, 0)
    return replace(job, parse=partial(replies.first_tokens, k=k))


def _ask_echo(text: str, how: Mapping[str, Any]) -> Job:
    """The request for a text's own log-probs, with as few tokens generated as the server allows."""
    job = _ask(text, how, how["made"], _sampling(0.0, 1.0) | {"echo": True, "logprobs": 1}, 0, 0)
    return replace(job, parse=partial(replies.echo_of, most=how["made"]))


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    return {"temperature": temperature} | ({"top_p": top_p} if top_p < 1 else {})


def _border(echo: replies.Echo, prompt: str, body: str) -> replies.Border | None:
    return replies.border(echo.tokens, prompt, body) if prompt else replies.Border(0, True)


def _forms(way: str) -> Iterator[tuple[dict[str, Any], Job, str]]:
    """The tiny calls that show whether a way works; each with what the refusal before must say to make it worth one.

    Newer hosted models want `max_completion_tokens`; some servers take no seed, fewer log-probs, or no empty answer.
    """
    endpoint, _, kind = way.partition(" ")
    for limit, seeded, after in (
        ("max_tokens", True, ""),
        ("max_completion_tokens", True, "max_completion_tokens"),
        ("max_tokens", False, "seed"),
    ):
        how: dict[str, Any] = {"endpoint": endpoint, "limit": limit, "seeded": seeded}
        if kind == "text":
            yield how, _ask("1 2 3", how, 1, _sampling(0.0, 1.0), 0, 0), after
        elif kind == "top":
            yield how | {"most": 20}, _ask_top("1 2 3", how | {"most": 20}, 20), after
            yield how | {"most": 5}, _ask_top("1 2 3", how | {"most": 5}, 5), after or "logprobs"
        else:
            for made in (0, 1):
                asked = _ask_echo("one two three four", how | {"made": made})
                yield how | {"made": made}, replace(asked, parse=partial(_honest, most=made)), after


def _honest(reply: Mapping[str, Any], most: int) -> None:
    """See that an echo of `one two three four` has the log-probs of its tokens: some servers fill in something."""
    echo = replies.echo_of(reply, most)
    if replies.border(echo.tokens, "one two", " three four") is None or not any(echo.logps):
        raise replies.LackingError("the answer has no log-probs of the prompt")
