"""What a server's answer says: its text, its first tokens, the log-probs of a text it echoes. Pure functions.

Answers are strangers' JSON: whatever is not of the expected form raises `PassingError`, never anything else.
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
STARVED = "answers are empty because their tokens ran out, most likely in thought: raise --max-new-tokens"
THINK = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


class PassingError(Exception):
    """A failure worth another try, after `wait` seconds where the server said so.

    `status` is the answer's; 0 where none came.
    """

    def __init__(self, message: str, status: int = 200, wait: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.wait = wait


class LackingError(PassingError):
    """A good answer without what was asked for: in a first call it shows that the server has it not."""


class Answer(NamedTuple):
    """What came over the wire: status, unpacked bytes, and for how long the server asks to be left alone."""

    status: int
    data: bytes
    retry_after: str | None


def inflated(data: bytes, coding: str, largest: int) -> bytes:
    """Bytes unpacked from gzip or deflate, never more than `largest` of them.

    Raises:
        PassingError: there are more, or they are damaged, or packed in a way that was not asked for.
    """
    if coding.lower() in ("", "identity"):
        return data
    if coding.lower() not in ("gzip", "deflate"):
        raise PassingError("the answer is packed in a way that was not asked for")
    for window in (47, -15):  # by its header; deflate without one
        unpacking = zlib.decompressobj(window)
        try:
            out = unpacking.decompress(data, largest)
        except zlib.error:
            continue
        if unpacking.unconsumed_tail:
            raise PassingError(f"the answer is longer than {largest >> 20} MiB")
        return out
    raise PassingError("the answer is cut short or not JSON")


def read(parse: Callable[[Mapping[str, Any]], T], reply: Any) -> T:
    """`parse(reply)`, where any surprise in the answer's form is a `PassingError`."""
    try:
        return parse(reply)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise PassingError("the answer is not of the form it should have") from None


class Echo(NamedTuple):
    """A text's tokens as the server shows them, each with its log-prob (None: read, not predicted)."""

    tokens: list[str]
    logps: list[float | None]


class Border(NamedTuple):
    """The completion's first token, and whether it begins where the prompt ends (else inside the prompt)."""

    at: int
    clean: bool


def border(tokens: Sequence[str], prompt: str, body: str) -> Border | None:
    """Where in the tokens of `prompt + body` the body begins, by their text; None where that does not tell.

    Read from the end, so that start tokens do not matter; then once more without white space, which some servers
    lose when they show tokens one by one.
    """
    for plain in (str, _unspaced):
        shown, wanted, before = [plain(t) for t in tokens], plain(body), plain(prompt)
        at, size = len(shown), 0
        while at and size < len(wanted):
            at -= 1
            size += len(shown[at])
        # A token shown as nothing is the beginning of the character that the next one ends.
        while at and (not tokens[at - 1] or (not shown[at - 1] and body[0].isspace())):
            at -= 1
        over = size - len(wanted)
        inside = before[len(before) - over :] if over > 0 else ""
        if wanted and 0 <= over <= len(before) and "".join(shown[at:]) == inside + wanted:
            return Border(at, over == 0)
    return None


def first_tokens(reply: Mapping[str, Any], k: int) -> dict[str, float]:
    """The `k` likeliest first tokens of an answer, likeliest first; equal texts added up."""
    choice = reply["choices"][0]
    found = choice.get("logprobs") or {}
    top: list[tuple[str, float]] = []
    if found.get("top_logprobs"):  # completions
        top = list(found["top_logprobs"][0].items())
    elif found.get("content"):  # chat, and completions of llama.cpp
        top = [(t["token"], t["logprob"]) for t in found["content"][0].get("top_logprobs", ())]
    if not top:
        raise LackingError("the answer has no log-probs of first tokens")
    if thought(choice.get("message") or {}) or any(
        str(text).strip() == begun for text, _ in top[:1] for begun, _ in THINK
    ):
        raise LackingError("the model thinks before it answers, so that its first tokens are not the answer's")
    out: dict[str, float] = {}
    for text, logp in top:
        if logp == -math.inf:
            continue
        if not (isinstance(text, str) and _is_logp(logp)):
            raise PassingError("the answer has log-probs that are none")
        known = out.get(text)
        out[text] = logp if known is None else max(known, logp) + math.log1p(math.exp(-abs(known - logp)))
    return dict(sorted(out.items(), key=lambda item: -item[1])[:k])


def text_of(reply: Mapping[str, Any]) -> str:
    """The text of an answer without the thought before it, with its tool calls; empty where the tokens ended before.

    Thought stands in a field of its own, or in `<think>` before the answer; a chat template that begins it itself
    leaves only its end to be seen.
    """
    choice = reply["choices"][0]
    text = choice.get("text") if "text" in choice else (choice.get("message") or {"content": 0}).get("content")
    if isinstance(text, list):  # parts, of which some are thought
        text = "".join(part["text"] for part in text if part.get("type") == "text")
    if not isinstance(text, str | None):
        raise LackingError("the answer has no text")
    text = text or ""
    for begun, ended in THINK:
        if text.lstrip().startswith(begun) or ("text" not in choice and ended in text):
            text = text.partition(ended)[2].lstrip()
    called = [_call(call) for call in (choice.get("message") or {}).get("tool_calls") or ()]
    return Reply({"role": "assistant", "content": text, "tool_calls": called}) if called else text


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's call as records have it: its arguments no text but what the text says, where it is JSON."""
    name, given = call["function"]["name"], call["function"].get("arguments", {})
    with contextlib.suppress(ValueError):
        given = json.loads(given) if isinstance(given, str) else given
    return {"type": "function", "function": {"name": name, "arguments": given}}


def starved(reply: Mapping[str, Any]) -> bool:
    """Whether an answer is empty because its tokens ran out: a reasoning model was still thinking."""
    choice = reply["choices"][0]
    return isinstance(choice, Mapping) and choice.get("finish_reason") == "length" and not text_of(reply).strip()


def echo_of(reply: Mapping[str, Any], most: int) -> Echo:
    """The tokens of an echoed text and their log-probs, without the at most `most` tokens that were generated."""
    found = reply["choices"][0].get("logprobs") or {}
    tokens, logps = found.get("tokens"), found.get("token_logprobs")
    if found.get("content"):
        tokens, logps = [t["token"] for t in found["content"]], [t.get("logprob") for t in found["content"]]
    if not tokens or not logps or len(tokens) != len(logps):
        raise LackingError("the answer has no log-probs of the prompt")
    made = (reply.get("usage") or {}).get("completion_tokens", most) if most else 0
    kept = len(tokens) - min(max(made, 0), most)
    if kept < 1 or not all(isinstance(t, str) for t in tokens) or not all(map(_is_logp, logps[1:kept])):
        raise LackingError("the answer has no log-probs of the prompt")
    return Echo(tokens[:kept], [logps[0] if _is_logp(logps[0]) else None, *logps[1:kept]])


def shared(alone: Sequence[str], whole: Sequence[str]) -> Border:
    """The border by what a text's tokens share with those of its prompt alone."""
    same = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    return Border(same, same == len(alone))


def _is_logp(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unspaced(text: str) -> str:
    return "".join(text.split())
