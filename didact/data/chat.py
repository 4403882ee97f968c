"""Render conversations by a tokenizer's chat template, which is untrusted code and run within limits.

The part to learn is what the template writes after the prompt, or what its generation tags enclose. If it leaves out
a part of a conversation (tools, their calls and answers, a system message, reasoning), that is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from didact import untrusted
from didact.data.templates import Chat
from didact.types import REASONING, Messages, Record, Reply, UserError, thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS, BYTES = 10, 1 << 30  # limits of one rendering of a chat template
LONGEST = 64_000_000  # characters of one rendering
LEFT_OUT = {"tool": "the tool's answer", "system": "the system message", "developer": "the developer's message"}

_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # how templates write the date
_TAGGED = re.compile(r"\{%[-+]?\s*generation\b")  # tags around an assistant's text
_DAY: contextvars.ContextVar[datetime.datetime | None] = contextvars.ContextVar("day", default=None)
R = TypeVar("R")


@contextlib.contextmanager
def dated(day: str) -> Iterator[None]:
    """Make chat templates that write the date write this one (ISO): a resumed run keeps its date."""
    token = _DAY.set(datetime.datetime.fromisoformat(day))
    try:
        yield
    finally:
        _DAY.reset(token)


def today() -> str:
    """The date for a run that starts now."""
    return datetime.datetime.now().isoformat(timespec="seconds")


def chat_choice(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], choice: Chat = "auto"
) -> Literal["template", "plain"]:
    """How `row` renders the prompts of these records, after `templates.as_chat` has applied the same option.

    `auto`: by the tokenizer's chat template where there is one and the records are conversations,
    else as plain text.

    Raises:
        UserError: a template is requested and the tokenizer has none.
    """
    if choice == "template" and not has_template(tokenizer):
        raise UserError("--chat template: the model's tokenizer has no chat template; use --chat plain")
    is_chat = any(isinstance(getattr(record, "prompt", None), Messages) for record in records)
    return "template" if choice == "template" or (choice == "auto" and is_chat and has_template(tokenizer)) else "plain"


def _may_lose(prompt: Messages) -> bool:
    """Whether a conversation has parts that some templates leave out."""
    return bool(prompt.tools) or any(t.get("tool_calls") or t["role"] in LEFT_OUT for t in prompt.turns)


def dialogue(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> str | None:
    """Render a prompt and its answer by the chat template, a plain prompt as a user's turn; None without a template.

    Raises:
        UserError: the template refuses these turns, or leaves a part of them out.
    """
    if not has_template(tokenizer):
        return None
    messages = prompt if isinstance(prompt, Messages) else Messages([{"role": "user", "content": prompt}])
    return _with_answer(tokenizer, messages, completion)


def _turns(prompt: Messages, completion: str) -> list[dict[str, Any]]:
    answer = completion.turn if isinstance(completion, Reply) else {"role": "assistant", "content": completion}
    return [*prompt.turns, answer]


def _with_answer(tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: str) -> str:
    """Render a conversation with its answer."""
    turns = _turns(prompt, completion)
    whole = render(tokenizer, turns, prompt.tools)
    if isinstance(completion, Reply) or _may_lose(prompt):
        _check_parts(tokenizer, turns, prompt.tools, whole)
    return whole


def _answer_span(tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: str) -> tuple[int, int] | None:
    """Span of the last turn's answer by the template's generation tags; None where they mark none."""
    if not _TAGGED.search(_template(tokenizer, prompt.tools)):
        return None
    before, spans = (_tag_spans(tokenizer, turns, prompt.tools) for turns in (prompt.turns, _turns(prompt, completion)))
    answer = spans[len(before) :]
    return (answer[0][0], answer[-1][1]) if answer else None


def rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: str, ends: Iterable[str] = ()
) -> tuple[str, str]:
    """Render a conversation by the tokenizer's chat template, split into the prompt and its answer.

    The answer is what the template's generation tags enclose; without them, the text after the prompt, up to the
    first of the `ends` of a turn.

    Raises:
        UserError: the template refuses these turns, leaves a part of them out, or writes the prompt differently once
            it is answered.
    """
    whole = _with_answer(tokenizer, prompt, completion)
    if (span := _answer_span(tokenizer, prompt, completion)) is not None:
        _check_answer(completion, whole[span[0] : span[1]])
        return whole[: span[0]], whole[span[0] : span[1]]
    head = render(tokenizer, prompt.turns, prompt.tools, add_generation_prompt=True)
    if not whole.startswith(head):
        raise UserError(
            "the tokenizer's chat template writes the prompt differently once it is answered, so that the part "
            "to learn cannot be located; use --chat plain, or fix the template"
        )
    tail = whole[len(head) :]
    _check_answer(completion, tail)
    start = tail.find(completion.strip())  # the first: the last could be in the end token
    after = max(start, 0) + (len(completion.strip()) if start >= 0 else 0)
    matches = [(at, end) for end in ends if (at := tail.find(end, after)) >= 0]
    if matches:  # what a template writes after the end token is never generated
        at, end = min(matches)
        tail = tail[: at + len(end)]
    return head, tail


def _check_answer(completion: str, rendering: str) -> None:
    """Refuse an answer of which the template leaves words out; it may change white space and punctuation."""
    words, written = ("".join(filter(str.isalnum, text)) for text in (completion, rendering))
    if not isinstance(completion, Reply) and words not in written:
        raise UserError(
            "the tokenizer's chat template leaves out a part of the answer (most likely its reasoning); "
            "remove that, or use --chat plain"
        )


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def override(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Set the tokenizer's chat template from a file, so that it is saved with it, and test it on one word.

    Raises:
        UserError: the file cannot be read, or the template does not render.
    """
    try:
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--chat-template {path}: cannot be read: {reason}") from None
    try:
        dialogue(tokenizer, "a", "b")
    except UserError as error:
        raise UserError(f"--chat-template {path}: {error}") from None


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> str:
    """Render these turns by the chat template.

    Raises:
        UserError: the template refuses them, or exceeds the limits on time, memory and length.
    """

    def write(turns: Sequence[dict[str, Any]] = turns, **options: Any) -> str:
        return str(tokenizer.apply_chat_template(list(turns), tools=list(tools) or None, tokenize=False, **options))

    all_arguments = [
        inner["arguments"] for turn in turns for inner in _functions(turn) if isinstance(inner.get("arguments"), dict)
    ]
    try:
        text = _limited(tokenizer, write, dict(options), tools)
        wants_text = any(str(arguments) in text for arguments in all_arguments if arguments)
    except UserError:
        if not all_arguments:
            raise
        wants_text = True
    if wants_text:  # some templates insert arguments without converting them to JSON
        text = _limited(tokenizer, write, options | {"turns": [with_text(turn) for turn in turns]}, tools)
    if len(text) > LONGEST:
        raise UserError(f"the tokenizer's chat template writes more than {LONGEST / 1e6:g} million characters")
    return text


def _functions(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """The called functions of a turn, with their names and arguments."""
    return [call.get("function", call) for call in turn.get("tool_calls") or ()]


def with_text(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn whose calls have their arguments as JSON text, as services and some templates expect them."""
    called = [
        inner | {"arguments": json.dumps(inner.get("arguments"), ensure_ascii=False)} for inner in _functions(turn)
    ]
    calls = [
        call | {"function": inner} if "function" in call else inner
        for call, inner in zip(turn.get("tool_calls") or (), called, strict=True)
    ]
    return turn | ({"tool_calls": calls} if calls else {})


def _tag_spans(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
) -> list[tuple[int, int]]:
    """Spans of the generation tags in the rendered text, in characters."""
    from transformers.utils.chat_template_utils import render_jinja_template

    own = _template(tokenizer, tools)

    def write(chat_template: Any = own) -> Any:
        values: dict[str, Any] = {**tokenizer.special_tokens_map, "tools": list(tools) or None}
        clean = [{k: v for k, v in turn.items() if v is not None} for turn in turns]
        return render_jinja_template([clean], chat_template=chat_template, return_assistant_tokens_mask=True, **values)[
            1
        ]

    return [(int(a), int(b)) for a, b in _limited(tokenizer, write, {}, tools)[0]]


def _template(tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, Any]] = ()) -> str:
    """The template for a conversation with these tools, since a tokenizer may have several; empty without one."""
    template: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("tool_use" if tools else "default", template.get("default"))
    return template or ""


def _limited(
    tokenizer: PreTrainedTokenizerBase, write: Callable[..., R], options: dict[str, Any], tools: Sequence[Any] = ()
) -> R:
    """Call `write` within limits on time and memory, and with the date of the run."""
    template = _template(tokenizer, tools)
    if (day := _DAY.get()) is not None and "strftime_now" in template:
        options["chat_template"] = _DATE.sub(lambda m: repr(day.strftime(m[2])), template)
    try:
        with untrusted.limited(SECONDS, BYTES):
            return write(**options)
    except untrusted.ExceededError:
        raise UserError(f"the tokenizer's chat template does not end within {SECONDS} s") from None
    except MemoryError:
        raise UserError(f"the tokenizer's chat template wants more than {BYTES >> 20} MiB") from None
    except Exception as error:  # a template is untrusted code and may raise anything
        raise UserError(f"the tokenizer's chat template refuses these messages: {error}") from None


def _check_parts(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], whole: str
) -> None:
    """Refuse a template that leaves out tools, the calls of a turn, a tool's answer or the system message."""

    def hidden(turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = tools) -> bool:
        with contextlib.suppress(UserError):
            return render(tokenizer, turns, tools) == whole
        return False  # rendering fails without it, so the template reads it

    def without(at: int, *names: str) -> list[dict[str, Any]]:
        empty = {"content": ""} if "content" in names else {}
        return [*turns[:at], {k: v for k, v in turns[at].items() if k not in names} | empty, *turns[at + 1 :]]

    missing = []
    for i, turn in enumerate(turns):
        if turn.get("tool_calls") and hidden(without(i, "tool_calls")):
            missing.append(f"tool_calls of turn {i + 1}")
        elif turn.get("tool_calls") and turn["content"].strip() and hidden(without(i, "content")):
            missing.append(f"the text of turn {i + 1} beside its calls")
        if (part := LEFT_OUT.get(turn["role"])) and turn["content"].strip() and hidden(without(i, "content")):
            missing.append(f"{part}, turn {i + 1}")
    if thought(turns[-1]) and hidden(without(len(turns) - 1, *REASONING)):  # many templates drop that of earlier turns
        missing.append(f"the reasoning of turn {len(turns)}")
    if tools and hidden(turns, ()):
        missing.append("tools")
    if missing:
        raise UserError(
            f"the tokenizer's chat template does not show {', '.join(missing)}; use a model whose template does, "
            "--chat plain, or remove the field"
        )
