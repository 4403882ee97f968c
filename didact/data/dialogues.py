"""Convert conversations in the common formats to prompts and answers: lists of `{role, content}` turns (TRL, chat
services), of `{from, value}` turns (ShareGPT), whole dialogues beside their prompts. Imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

from didact.data import fields, formats
from didact.types import Messages, Reply, UserError, thought

Turns = Literal["last", "all"]
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "observation": "tool"}
PARTS = ("text", "input_text", "output_text")  # types of a content's parts that are text
ANSWERS = ("completion", "chosen", "rejected", "refinement")  # fields that may hold one assistant turn
TALK = ("user", "assistant")
TURN = "\n\nAssistant:"  # starts an answer in plain-text dialogues
# Likely prompts under other names: a pair with one of these fields needs a --map and is not split.
ASKED = ("question", "instruction", "input", "query", "problem", "user")


def conversations(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Convert lists of `{role, content}` turns (TRL, chat services) to prompts and answers, in place."""
    if "prompt" in schema:
        _openai_pair(values)
        name = next((n for n in fields.SYNONYMS["messages"] if _have_speakers(values.get(n))), None)
        if name and "messages" not in values and values.get("prompt") is None:
            values["messages" if "completion" in schema else "prompt"] = values.pop(name)
        for name in set(ANSWERS) & set(schema):
            if isinstance(turn := values.get(name), dict) and _have_speakers([turn]):
                values[name] = [turn]  # one turn, not in a list
        if "chosen" in schema and values.get("prompt") is None and _is_unanswered(values.get("messages")):
            values["prompt"] = values.pop("messages")
        if "completion" in schema and "messages" in values and _is_in_messages(values.get("prompt"), values):
            values["prompt"], values["completion"] = _last_turn(values.pop("messages"))
        if values.get("prompt") is None and "chosen" in schema:
            _split_pair(values)
        if isinstance(values.get("prompt"), str):
            _take_prompt(values, schema)
        _add_history(values)
        tools = values.get("tools") or [_function(f) for f in values.get("functions") or () if are_turns([f])]
        if type(values.get("prompt")) is str and _are_tools(tools):
            values["prompt"] = [{"role": "user", "content": values["prompt"]}]
        if are_turns(values.get("prompt")):
            _strip_prompt(values, schema)
            values["prompt"] = Messages(_turns("prompt", values["prompt"]), _tools(tools))
        for name in set(ANSWERS) & set(schema):
            if are_turns(values.get(name)):
                values[name] = _answer(name, _turns(name, values[name]))
    if "segments" in schema and values.get("text") is None and isinstance(values.get("segments"), list):
        texts = [part.get("text") for part in values["segments"] if isinstance(part, Mapping)]
        values["text"] = "".join(text for text in texts if isinstance(text, str)) or None


def _openai_pair(values: dict[str, Any]) -> None:
    """Convert a pair in the format of OpenAI's fine-tuning, with the prompt in `input`, in place."""
    request = values.get("input")
    if isinstance(request, dict) and "messages" in request and "preferred_output" in values:
        names = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
        values |= {ours: values.pop(theirs) for theirs, ours in names.items() if theirs in values}
        values |= {"prompt": request["messages"], "tools": request.get("tools")}
        del values["input"]


def _add_history(values: dict[str, Any]) -> None:
    """Put a system message and earlier exchanges given beside a prompt (LLaMA-Factory, Axolotl) before its turns, in
    place. If the prompt has a system message of its own, only that one is kept.
    """
    system, history, prompt = (values.get(name) for name in ("system", "history", "prompt"))
    pairs = history if isinstance(history, list) and all(map(formats.is_pair, history)) else []
    has_system = isinstance(system, str) and bool(system.strip())
    if not (has_system or pairs) or not (isinstance(prompt, str) or are_turns(prompt)):
        return
    turns = prompt if are_turns(prompt) else [{"role": "user", "content": prompt}]
    system_turn = turns[:1] if turns[0].get("role") == "system" else []
    first = system_turn or [{"role": "system", "content": system}] * has_system
    talk = [{"role": role, "content": text} for pair in pairs for role, text in zip(TALK, pair, strict=True)]
    values["prompt"] = [*first, *talk, *turns[len(system_turn) :]]
    for name in ("system", "history"):
        values.pop(name, None)


def answered(row: Any, rename: Mapping[str, str] | None, turns: Turns) -> Iterator[Any]:
    """Split a row with `messages` into one per assistant turn that has turns before it; other rows, or `last`, stay."""
    names = [(rename or {}).get("messages", "messages"), *fields.SYNONYMS["messages"]]
    name = next((n for n in names if isinstance(row, Mapping) and n in row), names[0])
    messages = row.get(name) if isinstance(row, Mapping) else None
    if isinstance(messages, str) and isinstance(row, formats.Cells):
        messages = formats.decoded(messages)
    normalised = [_with_content(t) for t in messages] if are_turns(messages) else []
    ends = [i for i, t in enumerate(normalised) if i and _is_answer(t)]
    if turns == "last" or not isinstance(messages, list) or not ends:
        yield row
        return
    for i in ends:
        yield type(row)(row) | {name: messages[: i + 1]}


def _tools(value: Any) -> list[dict[str, Any]]:
    """Parse the tools a conversation offers; empty if there are none."""
    if isinstance(value, str) and value.strip():
        value = formats.decoded(value)
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError("field 'tools' must be a list of objects, as a chat template takes them")
    return value


def _are_tools(value: Any) -> bool:
    """Whether a value is a list of tools, and not another column of that name."""
    with contextlib.suppress(UserError):
        return bool(_tools(value))
    return False


def _function(function: dict[str, Any]) -> dict[str, Any]:
    """Wrap a function, or a call of one, in the form of tools: OpenAI's first format had it bare."""
    return {"type": "function", "function": function}


def _last_turn(messages: Any) -> tuple[list[dict[str, Any]], Any]:
    """Split a dialogue into the turns before its last answer and that answer; turns after it are dropped."""
    if isinstance(messages, str):  # a cell of a table
        messages = formats.decoded(messages)
    turns = _turns("messages", messages)
    last = max((i for i, turn in enumerate(turns) if _is_answer(turn)), default=0)
    if last == 0:
        raise UserError("field 'messages' must hold an assistant turn with something before it")
    return turns[:last], turns[last : last + 1]


def _is_answer(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is an answer to learn: not one of weight 0, which OpenAI's fine-tuning only reads."""
    return turn.get("role") == "assistant" and turn.get("weight") != 0


def _is_unanswered(value: Any) -> bool:
    """Whether a value is a list of turns that does not end in an answer."""
    return _have_speakers(value) and _with_content(value[-1]).get("role") != "assistant"


def _is_in_messages(prompt: Any, values: Mapping[str, Any]) -> bool:
    """Whether `messages` hold prompt and answer: no prompt is given, or (UltraChat) it is one of their turns."""
    if prompt is None or values.get("completion") is not None:
        return prompt is None
    return (
        isinstance(prompt, str)
        and _have_speakers(values["messages"])
        and any(str(_with_content(turn).get("content")).strip() == prompt.strip() for turn in values["messages"])
    )


def _split_pair(values: dict[str, Any]) -> None:
    """Split two whole dialogues into the prompt they share and their continuations (as in hh-rlhf), in place."""
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if are_turns(chosen) and are_turns(rejected):
        shared = min(_shared(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        if shared > 0:
            values["prompt"] = chosen[:shared]
            values["chosen"], values["rejected"] = chosen[shared:], rejected[shared:]
    elif isinstance(chosen, str) and isinstance(rejected, str):
        shared = _shared(chosen, rejected)
        border = chosen.rfind(TURN, 0, shared)
        if border >= 0:
            border += len(TURN)
        elif not set(ASKED) & set(values):
            limit = min(shared, len(chosen) - 1, len(rejected) - 1)  # both sides must go on
            border = max((i for i in range(limit + 1) if chosen[i - 1 : i].isspace()), default=0)
        if border > 0:
            values["prompt"], values["chosen"], values["rejected"] = chosen[:border], chosen[border:], rejected[border:]


def _take_prompt(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Take the prompt from whole dialogues rather than the text beside them (as in UltraFeedback), in place."""
    if "chosen" in schema:
        sides = [values.get("chosen"), values.get("rejected")]
        if all(are_turns(side) and len(side) > 1 for side in sides):
            _split_pair(values)
    elif are_turns(dialogue := values.get("completion")) and len(dialogue) > 1:
        values["prompt"], values["completion"] = dialogue[:-1], dialogue[-1:]


def _strip_prompt(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Remove the prompt's turns from answers that start with them, in place."""
    prompt = values["prompt"]
    for name in set(ANSWERS) & set(schema):
        answer = values.get(name)
        if are_turns(answer) and len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
            values[name] = answer[len(prompt) :]


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common prefix of two lists or texts."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def are_turns(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a non-empty list of objects, as conversations are."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _turns(name: str, value: Any) -> list[dict[str, Any]]:
    """Normalise and check a list of turns, each with a role and a text."""
    if not isinstance(value, list) or not value:
        raise UserError(f'field \'{name}\' must be a list of turns, {{"role": ..., "content": ...}}')
    value = [_with_content(turn) for turn in value]
    for at, turn in enumerate(value, 1):
        for key in ("role", "content"):
            if not isinstance(turn, dict) or not isinstance(turn.get(key), str):
                raise UserError(f"field '{name}', turn {at}: every turn needs a text 'role' and a text 'content'")
    fields.sound(name, value, numbers=False)
    return value


def _have_speakers(value: Any) -> bool:
    """Whether a value is a list of turns with a speaker each."""
    return are_turns(value) and all({"role", "from"} & turn.keys() for turn in value)


def _with_content(turn: Any) -> Any:
    """Normalise a turn: our names for ShareGPT's and those of OpenAI's first format, its text in one piece, its calls'
    arguments parsed from JSON. A turn that only calls tools gets an empty text, which services leave out."""
    if not isinstance(turn, dict):
        return turn
    turn = {k: v for k, v in turn.items() if v is not None}
    if "from" in turn and "role" not in turn:
        others = {k: v for k, v in turn.items() if k not in ("from", "value")}
        turn = others | {"role": SPEAKERS.get(str(turn["from"]), turn["from"]), "content": turn.get("value")}
        if turn["role"] == "function_call" and isinstance(turn["content"], str):
            called = formats.decoded(turn["content"])
            calls = [_function(call) for call in (called if isinstance(called, list) else [called])]
            turn |= {"role": "assistant", "content": "", "tool_calls": calls}
    if turn.get("role") == "function":
        turn |= {"role": "tool"}
    if isinstance(turn.get("function_call"), dict):
        turn["tool_calls"] = [_function(turn.pop("function_call"))]
    if isinstance(turn.get("content"), list):
        turn["content"] = "\n".join(map(_part, turn["content"]))
    if are_turns(calls := turn.get("tool_calls")):
        turn |= {"content": turn.get("content") or "", "tool_calls": [_with_arguments(call) for call in calls]}
    return turn


def _part(part: Any) -> str:
    """The text of one part of a turn's content.

    Raises:
        UserError: the part is not text.
    """
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind not in PARTS or not isinstance(part.get("text"), str):
        raise UserError(f"a turn's content has a part of type '{kind}': only text can be read; remove it")
    return str(part["text"])


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Parse a call's arguments where they are JSON text: templates convert them to JSON themselves."""
    if isinstance(inner := call.get("function"), dict):
        return call | {"function": _with_arguments(inner)}
    arguments = call.get("arguments")
    with contextlib.suppress(UserError):
        if isinstance(arguments, str) and isinstance(parsed := formats.decoded(arguments), dict):
            return call | {"arguments": parsed}
    return call


def _answer(name: str, turns: list[dict[str, Any]]) -> str:
    roles = [turn["role"] for turn in turns]
    if roles != ["assistant"]:
        raise UserError(
            f"field '{name}' must be one assistant turn, not {', '.join(roles)}; put what precedes it into the prompt"
        )
    text: str = turns[0]["content"]
    return Reply(turns[0]) if turns[0].get("tool_calls") or thought(turns[0]) else text
