"""A model behind an OpenAI-compatible server, as an `LM`: `didact.connect`.

Servers differ in what they offer and seldom report it (some ignore fields they do not know), so every capability is
probed with a tiny request whose response is checked. Every response is cached as it arrives (`infer.responses`), so
that a run that was killed, used up its budget or lost its server resumes from there when it is started again.
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

CONTEXT = 4096  # tokens, where the server does not report its context length
CONTEXTS = ("max_model_len", "context_length", "context_window", "n_ctx", "n_ctx_train")  # fields that report it
AGAIN = 86400.0  # seconds after which a missing capability is probed again
STOPS = 4  # stop strings that every server accepts
COMPLETIONS, CHAT = "completions", "chat/completions"
WAYS = {
    "generate": (f"{COMPLETIONS} text", f"{CHAT} text"),
    "chat": (f"{CHAT} text",),
    "top_logprobs": (f"{COMPLETIONS} top", f"{CHAT} top"),
    "score": (f"{COMPLETIONS} echo",),
}


def open_lm(model: str) -> LM:
    """Open a model by a server's address, a folder or a hub id."""
    return connect(model) if is_address(model) else local.of(load.load(model))


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
    """Open a model behind an OpenAI-compatible server (vLLM, llama.cpp, `transformers serve`, hosted ones).

    Nothing is sent before the first use. Example: `didact.connect("http://localhost:8000/v1", "my-model")`.

    Args:
        url: the address, usually ending in `/v1`; `url#name` also names the model.
        name: the server's name for the model; not needed if it serves only one.
        key: the bearer token; defaults to the environment variable OPENAI_API_KEY, else none is sent.
        budget_calls: most calls, counting retries and capability probes; cached answers are free.
        budget_tokens: most tokens of prompts and answers. Checked before each call, so that the calls in flight
            (`parallel`) can still exceed it.
        timeout: seconds for a whole answer, connecting and headers included.
        retries: of a call that meets 429, 5xx, silence or an answer cut short; waits double from half a second.
        parallel: most calls in flight at once.
        cache: store answers and reuse stored ones; `DIDACT_CACHE=off` turns it off for all.
        context: most tokens of prompt and answer; by default the server's own, else 4,096.

    Raises:
        UserError: the address or a number is wrong, or the extra `remote` is missing.
    """
    url, _, fragment = url.partition("#")
    for option, number in (("budget_calls", budget_calls), ("budget_tokens", budget_tokens), ("retries", retries)):
        if number is not None and number < 0:
            raise UserError(f"{option} = {number}: must be 0 or more")
    if not timeout > 0 or parallel < 1:
        raise UserError(f"timeout = {timeout}, parallel = {parallel}: both must be above 0")
    check_address(url)
    limits = calls.Limits(budget_calls, budget_tokens, timeout, retries, parallel)
    path = responses.place() if cache else None
    store = responses.Responses(path) if path else None
    secret = key or os.environ.get("OPENAI_API_KEY")
    if secret:
        untrusted.keep_secret(secret, "`key`" if key else "the variable OPENAI_API_KEY")
    return Remote(calls.Caller(url.rstrip("/"), name or fragment or None, secret, limits, store), context)


@dataclass(frozen=True)
class Probe:
    """The result of a probe: the request form, or None and the reason; `served` is the model's name in the response."""

    how: dict[str, Any] | None
    why: str = ""
    status: int = 0
    served: str | None = None


class Remote:
    """A served model, made by `connect`. `counts` has the calls and tokens used and the answers from the cache.

    One answer is one call: prompts are not batched and `n` is not sent, since servers differ in both. Threads may
    share an instance, processes the cache.
    """

    def __init__(self, caller: calls.Caller, context: int | None = None) -> None:
        self.caller = caller
        self._context = context
        self._lock = threading.RLock()
        self._probes: dict[str, Probe] = {}

    @property
    def name(self) -> str:
        """The server's name for the model."""
        return self.caller.name

    @property
    def address(self) -> str:
        """Server and model, in the form that `connect` accepts."""
        return f"{self.caller.url}#{self.name}"

    def fingerprint(self) -> str:
        """The address: a served model's weights cannot be hashed."""
        return self.address

    @property
    def counts(self) -> calls.Counts:
        """Calls, retries, tokens and answers from the cache so far."""
        return self.caller.counts

    @property
    def capabilities(self) -> frozenset[str]:
        """What this server offers for this model; probes whatever is not known yet."""
        return frozenset(capability for capability in local.SERVED if self.lacks(capability) is None)

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion: as passed to `connect`, as the server lists it, else 4,096."""
        if self._context is None:
            listed = self.caller.listed().get(self.name, {})
            meta = listed.get("meta")
            fields = {**(meta if isinstance(meta, dict) else {}), **listed}
            lengths = (fields.get(name) for name in CONTEXTS)
            self._context = next((n for n in lengths if type(n) is int and 0 < n <= calls.MOST), CONTEXT)
        return self._context

    def lacks(self, what: str) -> str | None:
        """Why it cannot do `what`, or None where it can; probes only this capability."""
        if what not in local.SERVED:
            return f"{self.caller.url} is a server, which does not offer {what}: load the weights (--model DIR)"
        try:
            self._working_form(what)
        except calls.RefusedError as refused:
            return str(refused)
        return None

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimated token counts, one per 3 bytes of UTF-8: the server's tokenizer is not available."""
        return [calls.estimate(text) for text in texts]

    def close(self) -> None:
        """Close connections and cache; also done at exit."""
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
        """`n` completions of every prompt, cut before the first of `stop` and stripped.

        Through `completions` where the server has it, else through `chat` with the prompt as the user's turn; for a
        conversation (`Messages`) the other way round. Draws have the seeds `seed`, `seed + 1`, ..., and equal prompts
        get different ones; at temperature 0 one call serves all. A prompt too long for the context is refused by the
        server.

        Raises:
            UserError: the server refuses, does not answer, or the budget is used up.
        """
        options = _sampling(temperature, top_p) | ({"stop": list(stop[:STOPS])} if stop else {})
        forms = self._prompt_forms("generate", prompts)
        requests = [
            partial(_request, p, form, max_new_tokens, options, seed) for p, form in zip(prompts, forms, strict=True)
        ]
        drawn = self._draws(prompts, requests, n, temperature == 0)
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
        """`n` replies to every conversation, with the server's chat template. Draws and errors as in `generate`."""
        form = self._required_form("chat")
        prompts = [Messages(c) for c in conversations]
        requests = [partial(_request, p, form, max_new_tokens, _sampling(temperature, 1.0), seed) for p in prompts]
        drawn = self._draws(prompts, requests, n, temperature == 0)
        return [[text.strip() for text in texts] for texts in drawn]

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> list[dict[str, float]]:
        """The likeliest next tokens of every prompt, likeliest first: `k`, or as many as the server gives (20, or 5).

        Through `completions` where it gives them, else `chat`, where they are the first tokens of the reply to the
        prompt as the user's turn. Probabilities of tokens with the same text are added up.

        Raises:
            UserError: the server gives none, or as in `generate`.
        """
        forms = self._prompt_forms("top_logprobs", prompts)
        return self.caller.each([_top_request(p, form, k) for p, form in zip(prompts, forms, strict=True)])

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Likelihood of every (prompt, completion), where the server echoes a text with its log-probs.

        The server tokenises prompt and completion as one text, joined and cut as for a local model (`encode.join`,
        `encode.cut`). The completion's tokens are the last ones whose texts make up the completion; if the texts do
        not show where it begins (characters split over tokens), those after the common prefix with the prompt's own
        tokens, which costs a second call. A token that straddles prompt and completion counts with the completion as
        a whole: its log-prob then covers the prompt's last characters too. `counts.straddled` counts such completions.

        Raises:
            UserError: the server gives no log-probs of prompts, or as in `generate`; an empty completion; a text
                of one token.
        """
        form = self._required_form("score")
        texts = [encode.cut(prompt, encode.join(prompt, completion, "causal")) for prompt, completion in pairs]
        if not all(completion for _, completion in pairs):
            raise UserError("the completion is empty: nothing to learn or score")
        echoes = self.caller.each([_echo_request(prompt + body, form) for prompt, body in texts])
        borders = [_border(echo, *text) for echo, text in zip(echoes, texts, strict=True)]
        ambiguous = list(dict.fromkeys(p for (p, _), located in zip(texts, borders, strict=True) if located is None))
        prompt_echoes = dict(zip(ambiguous, self.caller.each([_echo_request(p, form) for p in ambiguous]), strict=True))
        out = []
        for (prompt, _), echo, located in zip(texts, echoes, borders, strict=True):
            border = located or replies.shared(prompt_echoes[prompt].tokens, echo.tokens)
            # The text's first token is not predicted and has no log-prob.
            logps = [logp for logp in echo.logps[border.at :] if logp is not None]
            if not logps:
                raise UserError("the text is a single token, which has no context: nothing to learn or score")
            out.append(Likelihood(math.fsum(logps), len(logps)))
            self.counts.straddled += not border.clean
        return out

    def _draws(
        self, prompts: Sequence[str], requests: Sequence[Callable[[int], Job]], n: int, greedy: bool
    ) -> list[list[str]]:
        """`n` draws of every prompt; a repeated prompt continues the draw numbers, greedy decoding has draw 0 alone."""
        repeats: Counter[str] = Counter()
        jobs = []
        for prompt, job in zip(prompts, requests, strict=True):
            jobs += [job(0 if greedy else repeats[prompt] * n + d) for d in range(n)]
            repeats[prompt] += 1
        texts = self.caller.each(jobs)
        return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _prompt_forms(self, capability: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """The request form for a capability, prompt by prompt: conversations try `chat` first."""
        kinds = [isinstance(p, Messages) for p in prompts]
        forms = {kind: self._required_form(capability, kind) for kind in sorted(set(kinds))}
        return [forms[kind] for kind in kinds]

    def _required_form(self, capability: str, conversation: bool = False) -> dict[str, Any]:
        """The request form for a capability; a `UserError` where the server lacks it."""
        try:
            return self._working_form(capability, conversation)
        except calls.RefusedError as refused:
            raise UserError(f"{self.name} at {self.caller.url} does not offer {capability}: {refused}") from None

    def _working_form(self, capability: str, conversation: bool = False) -> dict[str, Any]:
        """The request form for a capability, of the first way that works; raises `RefusedError` where none does."""
        refusals = []
        for way in reversed(WAYS[capability]) if conversation else WAYS[capability]:
            probe = self._probe(way)
            if probe.how is not None:
                return probe.how
            refusals.append(probe)
        not_found = all(probe.status == 404 for probe in refusals) and not self.caller.url.endswith("/v1")
        hint = "; most addresses end in /v1" if not_found else ""
        raise calls.RefusedError("; ".join(probe.why for probe in refusals) + hint)

    def _probe(self, way: str) -> Probe:
        """Find out whether one way works: from memory, from the cache, else with a tiny request.

        A success is cached for good, a refusal for a day, a failing server not at all.
        """
        store, caller = self.caller.kept, self.caller
        with self._lock:
            if way in self._probes:
                return self._probes[way]
            key = responses.key(caller.url, self.name, "first", {"way": way}, 0)
            row = store.get([key]).get(key) if store else None
            if row and (row["found"]["how"] or time.time() - row["made"] < AGAIN):
                self._probes[way] = Probe(**row["found"])
                return self._probes[way]
            try:
                self._probes[way] = self._run_probe(way)
            except replies.PassingError as failed:
                if not failed.status or failed.status in calls.BUSY:
                    raise UserError(f"{caller.url}: {failed}; {caller.resume()}") from None
                return Probe(None, f"{way.split()[0]}: {failed}", failed.status)
            if store:
                store.drop(key)
                row = {"found": asdict(self._probes[way]), "made": time.time()}
                store.put([responses.CachedAnswer(key, caller.url, self.name, "first", {"way": way}, 0, row)])
            return self._probes[way]

    def _run_probe(self, way: str) -> Probe:
        """Try the request forms of one way until a response is valid; some servers fail at forms they do not know."""
        last: calls.RefusedError | replies.PassingError = calls.RefusedError("")
        for form, job, trigger in _forms(way):
            if last.status in calls.ABSENT or trigger not in str(last):
                continue
            try:
                reply = self.caller.first(job)
                return Probe(form, served=str(reply.get("model")))
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
        return Probe(None, str(last), last.status)


def _request(prompt: str, form: Mapping[str, Any], limit: int, options: Mapping[str, Any], seed: int, draw: int) -> Job:
    """The request for a continuation of `prompt`, or for the reply to it."""
    messages = prompt.turns if isinstance(prompt, Messages) else ({"role": "user", "content": prompt},)
    turns = list(map(chat.with_text, messages))
    prompt_fields: dict[str, Any] = {"messages": turns} if form["endpoint"] == CHAT else {"prompt": str(prompt)}
    if "messages" in prompt_fields and isinstance(prompt, Messages) and prompt.tools:
        prompt_fields["tools"] = list(prompt.tools)
    body = {**prompt_fields, form["limit"]: limit, **options}
    return Job(form["endpoint"], body, replies.text_of, seed + draw, draw, form["seeded"])


def _top_request(prompt: str, form: Mapping[str, Any], k: int) -> Job:
    """The request for the likeliest first tokens."""
    count = min(k, form["most"])
    options = {"logprobs": True, "top_logprobs": count} if form["endpoint"] == CHAT else {"logprobs": count}
    job = _request(prompt, form, 1, _sampling(0.0, 1.0) | options, 0, 0)
    return replace(job, parse=partial(replies.first_tokens, k=k))


def _echo_request(text: str, form: Mapping[str, Any]) -> Job:
    """The request for a text's own log-probs, generating as few tokens as the server allows."""
    job = _request(text, form, form["made"], _sampling(0.0, 1.0) | {"echo": True, "logprobs": 1}, 0, 0)
    return replace(job, parse=partial(replies.echo_of, limit=form["made"]))


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    return {"temperature": temperature} | ({"top_p": top_p} if top_p < 1 else {})


def _border(echo: replies.Echo, prompt: str, body: str) -> replies.Border | None:
    return replies.border(echo.tokens, prompt, body) if prompt else replies.Border(0, True)


def _forms(way: str) -> Iterator[tuple[dict[str, Any], Job, str]]:
    """Yield the probes of a way: form, job, and the text that the previous refusal must contain to try this one.

    Newer hosted models want `max_completion_tokens`; some servers accept no seed, fewer log-probs, or no empty answer.
    """
    endpoint, _, kind = way.partition(" ")
    for limit, seeded, trigger in (
        ("max_tokens", True, ""),
        ("max_completion_tokens", True, "max_completion_tokens"),
        ("max_tokens", False, "seed"),
    ):
        form: dict[str, Any] = {"endpoint": endpoint, "limit": limit, "seeded": seeded}
        if kind == "text":
            yield form, _request("1 2 3", form, 1, _sampling(0.0, 1.0), 0, 0), trigger
        elif kind == "top":
            yield form | {"most": 20}, _top_request("1 2 3", form | {"most": 20}, 20), trigger
            yield form | {"most": 5}, _top_request("1 2 3", form | {"most": 5}, 5), trigger or "logprobs"
        else:
            for generated in (0, 1):
                job = _echo_request("one two three four", form | {"made": generated})
                yield form | {"made": generated}, replace(job, parse=partial(_check_echo, limit=generated)), trigger


def _check_echo(reply: Mapping[str, Any], limit: int) -> None:
    """Check that an echo of `one two three four` has real log-probs of its tokens: some servers return fillers."""
    echo = replies.echo_of(reply, limit)
    if replies.border(echo.tokens, "one two", " three four") is None or not any(echo.logps):
        raise replies.LackingError("the answer has no log-probs of the prompt")
