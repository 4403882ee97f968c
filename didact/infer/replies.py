"""Parse a server's response: its text, its first tokens, the log-probs of an echoed text. Pure functions.

Responses are untrusted JSON: whatever is not of the expected form raises `PassingError`, never anything else.
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from didact.types import Reply, thought

T = TypeVar("T")
STARVED = "answers are empty because the token limit was reached, most likely while reasoning: raise --max-new-tokens"
THINK = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


class PassingError(Exception):
    """A failure worth a retry, after `wait` seconds where the server set a time.

    `status` is the HTTP status; 0 if no response came.
    """

    def __init__(self, message: str, status: int = 200, wait: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.wait = wait


class LackingError(PassingError):
    """A valid response without the requested part: in a probe it shows that the server lacks the capability."""


class Answer(NamedTuple):
    """An HTTP response: status, decompressed bytes, and the `Retry-After` header."""

    status: int
    data: bytes
    retry_after: str | None


def inflated(data: bytes, coding: str, largest: int) -> bytes:
    """Decompress gzip or deflate, never to more than `largest` bytes.

    Raises:
        PassingError: there are more, they are damaged, or the encoding was not requested.
    """
    if coding.lower() in ("", "identity"):
        return data
    if coding.lower() not in ("gzip", "deflate"):
        raise PassingError("the answer has a content encoding that was not requested")
    for window in (47, -15):  # gzip or zlib header; raw deflate
        decoder = zlib.decompressobj(window)
        try:
            out = decoder.decompress(data, largest)
        except zlib.error:
            continue
        if decoder.unconsumed_tail:
            raise PassingError(f"the answer is longer than {largest >> 20} MiB")
        return out
    raise PassingError("the answer is cut short or not JSON")


def read(parse: Callable[[Mapping[str, Any]], T], reply: Any) -> T:
    """`parse(reply)`, with any error in the response's form raised as `PassingError`."""
    try:
        return parse(reply)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise PassingError("the answer does not have the expected form") from None


class Echo(NamedTuple):
    """A text's tokens as the server shows them, each with its log-prob (None for the first, which is not predicted)."""

    tokens: list[str]
    logps: list[float | None]


class Border(NamedTuple):
    """The index of the completion's first token, and whether it begins where the prompt ends (else inside it)."""

    at: int
    clean: bool


def border(tokens: Sequence[str], prompt: str, body: str) -> Border | None:
    """Find where in the tokens of `prompt + body` the body begins, by their texts; None if these do not show it.

    Read from the end, so that start tokens do not matter; then again without white space, which some servers lose
    when they show tokens one by one.
    """
    for normalize in (str, _unspaced):
        texts, target, head = [normalize(t) for t in tokens], normalize(body), normalize(prompt)
        at, size = len(texts), 0
        while at and size < len(target):
            at -= 1
            size += len(texts[at])
        # A token with an empty text holds the first bytes of a character that the next one completes.
        while at and (not tokens[at - 1] or (not texts[at - 1] and body[0].isspace())):
            at -= 1
        excess = size - len(target)
        inside = head[len(head) - excess :] if excess > 0 else ""
        if target and 0 <= excess <= len(head) and "".join(texts[at:]) == inside + target:
            return Border(at, excess == 0)
    return None


def first_tokens(reply: Mapping[str, Any], k: int) -> dict[str, float]:
    """The `k` likeliest first tokens of an answer, likeliest first; tokens of equal text are added up."""
    choice = reply["choices"][0]
    logprobs = choice.get("logprobs") or {}
    top: list[tuple[str, float]] = []
    if logprobs.get("top_logprobs"):  # completions
        top = list(logprobs["top_logprobs"][0].items())
    elif logprobs.get("content"):  # chat, and completions of llama.cpp
        top = [(t["token"], t["logprob"]) for t in logprobs["content"][0].get("top_logprobs", ())]
    if not top:
        raise LackingError("the answer has no log-probs of first tokens")
    if thought(choice.get("message") or {}) or any(
        str(text).strip() == opening for text, _ in top[:1] for opening, _ in THINK
    ):
        raise LackingError("the model thinks before it answers: its first tokens are not the answer's")
    out: dict[str, float] = {}
    for text, logp in top:
        if logp == -math.inf:
            continue
        if not (isinstance(text, str) and _is_logp(logp)):
            raise PassingError("the answer has invalid log-probs")
        previous = out.get(text)
        out[text] = logp if previous is None else max(previous, logp) + math.log1p(math.exp(-abs(previous - logp)))
    return dict(sorted(out.items(), key=lambda item: -item[1])[:k])


def text_of(reply: Mapping[str, Any]) -> str:
    """The text of an answer without its reasoning, with its tool calls; empty where the token limit cut it off before.

    Reasoning is in a field of its own, or in `<think>` before the answer; where the chat template opens the tag, only
    the closing tag is in the text.
    """
    choice = reply["choices"][0]
    text = choice.get("text") if "text" in choice else (choice.get("message") or {"content": 0}).get("content")
    if isinstance(text, list):  # content parts, some of them reasoning
        text = "".join(part["text"] for part in text if part.get("type") == "text")
    if not isinstance(text, str | None):
        raise LackingError("the answer has no text")
    text = text or ""
    for opening, closing in THINK:
        if text.lstrip().startswith(opening) or ("text" not in choice and closing in text):
            text = text.partition(closing)[2].lstrip()
    calls = [_call(call) for call in (choice.get("message") or {}).get("tool_calls") or ()]
    return Reply({"role": "assistant", "content": text, "tool_calls": calls}) if calls else text


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call in the form of records: arguments parsed from their JSON text, where it is valid."""
    name, arguments = call["function"]["name"], call["function"].get("arguments", {})
    with contextlib.suppress(ValueError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def starved(reply: Mapping[str, Any]) -> bool:
    """Whether an answer is empty because the token limit was reached while the model was still reasoning."""
    choice = reply["choices"][0]
    return isinstance(choice, Mapping) and choice.get("finish_reason") == "length" and not text_of(reply).strip()


def echo_of(reply: Mapping[str, Any], limit: int) -> Echo:
    """The tokens of an echoed text and their log-probs, without the (at most `limit`) generated tokens."""
    logprobs = reply["choices"][0].get("logprobs") or {}
    tokens, logps = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if logprobs.get("content"):
        tokens, logps = [t["token"] for t in logprobs["content"]], [t.get("logprob") for t in logprobs["content"]]
    if not tokens or not logps or len(tokens) != len(logps):
        raise LackingError("the answer has no log-probs of the prompt")
    generated = (reply.get("usage") or {}).get("completion_tokens", limit) if limit else 0
    size = len(tokens) - min(max(generated, 0), limit)
    if size < 1 or not all(isinstance(t, str) for t in tokens) or not all(map(_is_logp, logps[1:size])):
        raise LackingError("the answer has no log-probs of the prompt")
    return Echo(tokens[:size], [logps[0] if _is_logp(logps[0]) else None, *logps[1:size]])


def shared(alone: Sequence[str], whole: Sequence[str]) -> Border:
    """The border by the common prefix of a text's tokens with those of its prompt alone."""
    common = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole))
    )
    return Border(common, common == len(alone))


def _is_logp(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unspaced(text: str) -> str:
    return "".join(text.split())
