"""Files to records, with every mistake named by file, line and field. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from didact.data import contexts, formats
from didact.types import RECORDS, Messages, Preference, Record, Reply, UserError

R = TypeVar("R", bound=Record)
Turns = Literal["last", "all"]
SHOWN = 20  # bad lines listed before the rest are only counted
ANSWERS = ("completion", "chosen", "rejected", "refinement")  # what may be given as one assistant turn
TURN = "\n\nAssistant:"  # how dialogues in plain text begin an answer
HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
# Fields that are likely a prompt under another name: a pair that has one is not to be split, but mapped.
ASKED = ("question", "instruction", "input", "query", "problem", "user")


class Records(list[R]):
    """A list of records that remembers the file it came from, the line of each, and how many lines were dropped."""

    path: str | None = None
    dropped: int = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.places: list[str] = []  # where each stands, `file:line`

    def __repr__(self) -> str:
        """How many of which kind, from where, and the first: a notebook shows a file in a line."""
        kind = type(self[0]).__name__ if self else "no"
        first = f", first {self[0]!r:.200}" if self else ""
        return f"Records({len(self):,} {kind}{f' from {self.path}' if self.path else ''}{first})"


def read(
    path: str | Path,
    kind: str | type[R] = "demo",
    rename: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    turns: Turns = "last",
) -> Records[R]:
    """Read a file, a folder of `datasets` or a hub reference into records of one kind.

    Args:
        path: what to read; `data.formats` lists what there is. Empty lines are ignored.
        kind: a record class or its name (`demo`, `text`, `preference`, ...).
        rename: the file's field for a record's, `{"prompt": "question"}`.
        skip_bad: drop bad lines and count them in `.dropped` instead of raising.
        turns: which assistant turns of `messages` are completions; `all` makes a record of each, after all that
            precedes it.

    Raises:
        UserError: the file is missing, empty, binary, or has bad lines (the first 20 are listed).
    """
    record: Any = kind if isinstance(kind, type) else RECORDS.get(kind)
    if record is None:
        raise UserError(f"unknown record kind '{kind}': use one of {', '.join(RECORDS)}")
    records: Records[R] = Records()
    records.path = str(path)
    problems: list[str] = []
    for place, found in formats.rows(path):
        try:
            for row in contexts.both_ways(found) if record is Preference else _answered(found, rename, turns):
                records.append(from_row(row, record, rename))
                records.places.append(place)
        except UserError as problem:
            problems.append(f"{place}: {problem}")
    if problems and not skip_bad:
        raise UserError(listed(problems))
    if not records:
        why = f"all {len(problems)} lines are bad" if problems else "it is empty"
        raise UserError(f"{path}: no {record.__name__} record in it: {why}")
    records.dropped = len(problems)
    return records


def listed(problems: Sequence[str]) -> str:
    """The first bad lines, how many more there are, and the mend."""
    more = f"\n... and {len(problems) - SHOWN} more bad lines" if len(problems) > SHOWN else ""
    return "\n".join(problems[:SHOWN]) + more + "\n(--skip-bad drops and counts such lines)"


def parse(line: str, record: type[R], rename: Mapping[str, str] | None = None) -> R:
    """One line of JSON to one record."""
    return from_row(formats.decoded(line), record, rename)


def from_row(row: formats.Row, record: type[R], rename: Mapping[str, str] | None = None) -> R:
    """A mapping to one record; unknown fields go to `extra`, a wrong or missing one raises `UserError`."""
    if isinstance(row, UserError):
        raise row
    if not isinstance(row, Mapping):
        raise UserError(f"a JSON object is expected, not {_name(row)}")
    kind: Any = record
    values, fields = dict(row), _fields(kind)
    _instructed(values, fields, rename or {})
    for mine, theirs in (rename or {}).items():
        if theirs in values:
            values[mine] = values.pop(theirs)
    if isinstance(row, formats.Cells):
        values |= {k: _typed(v, fields[k][0]) for k, v in values.items() if k in fields}
    _conversations(values, fields)
    known: dict[str, Any] = {}
    for name, (types_, required) in fields.items():
        value = values.pop(name, None)
        if value is None:
            if required:
                near = f"; this line has {', '.join(map(repr, list(row)[:6]))}" if row else ""
                raise UserError(f"field '{name}' is missing{near} (--map {name}=YOUR_FIELD renames)")
            continue
        known[name] = _checked(name, value, types_)
    extra = values.pop("extra", {})
    extra = values | (extra if isinstance(extra, dict) else {"extra": extra})
    for name, value in extra.items():
        extra[name] = str(value) if isinstance(value, bytes) else value
        _sound(name, [name, value], numbers=False)
    return record(**known, extra={k: v for k, v in extra.items() if k not in known})


@functools.cache
def _fields(record: Any) -> dict[str, tuple[tuple[Any, ...], bool]]:
    hints = typing.get_type_hints(record)
    out = {}
    for f in dataclasses.fields(record):
        if f.name != "extra":
            hint = hints[f.name]
            options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            out[f.name] = (options, required)
    return out


def _checked(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        if (part := _part(option)) and isinstance(value, list):
            return [_nested(name, at, item, part) for at, item in enumerate(value, 1)]
        if _fits(value, option):
            _sound(name, value)
            return float(value) if option is float else value
    wanted = " or ".join(_type_name(option) for option in options if option is not type(None))
    mend = (
        " (in a table, write it as JSON)" if isinstance(value, str) and wanted.startswith(("a list", "an obj")) else ""
    )
    raise UserError(f"field '{name}' must be {wanted}, not {_name(value)}{mend}")


def _fits(value: Any, option: Any) -> bool:
    if option is Any:
        return True
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    origin = typing.get_origin(option) or option
    if not isinstance(value, origin):
        return False
    inner = typing.get_args(option)
    return origin is not list or not inner or all(_fits(item, inner[0]) for item in value)


def _sound(name: str, value: Any, numbers: bool = True) -> None:
    """No NaN, infinity or half surrogate pair anywhere inside: neither a float nor a tokenizer takes them."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend([*item, *item.values()])
        elif isinstance(item, str) and HALVES.search(item):
            raise UserError(f"field {name!r} holds half a surrogate pair, which no tokenizer takes; mend the escape")
        elif numbers and isinstance(item, int | float) and not abs(item) <= sys.float_info.max:
            raise UserError(f"field '{name}' holds NaN or an infinity; remove the line or mend the number")


def _part(option: Any) -> type[Record] | None:
    """The record a field of this type is a list of, where it is one (a trajectory's steps, a text's segments)."""
    inner = typing.get_args(option) if typing.get_origin(option) is list else ()
    return inner[0] if inner and isinstance(inner[0], type) and issubclass(inner[0], Record) else None


def _nested(name: str, at: int, item: Any, part: type[Record]) -> Record:
    try:
        return from_row(item, part)
    except UserError as problem:
        raise UserError(f"field '{name}', item {at}: {str(problem).partition(' (--map')[0]}") from None


def _typed(text: Any, options: tuple[Any, ...]) -> Any:
    """A table's cell as its field's type; what does not fit stays text, for the check to name."""
    if str in options:
        return text
    if bool in options:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    try:
        return float(text) if float in options else formats.decoded(text)
    except (ValueError, UserError):
        return text


def _instructed(values: dict[str, Any], fields: Mapping[str, Any], rename: Mapping[str, str]) -> None:
    """An instruction with its input (Alpaca) or context (Dolly) to a prompt, the output to its completion; in place.

    Also where a prompt is renamed from the instruction: what it is about belongs to it.
    """
    told, used = values.get("instruction"), set(rename.values())
    if "prompt" not in fields or not isinstance(told, str) or rename.get("prompt", "instruction") != "instruction":
        return
    if "prompt" in values or ("messages" in values and "completion" in fields):
        return
    about = "context" if "response" in values else "input"
    given = values.get(about) if about not in used else None
    del values["instruction"]
    if isinstance(given, str):
        del values[about]
    values["prompt"] = f"{told}\n\n{given}" if isinstance(given, str) and given.strip() else told
    if "completion" in fields and "completion" not in values and "completion" not in rename:
        said = next((name for name in ("output", "response") if name in values), None)
        values |= {"completion": values.pop(said)} if said else {}


# --- conversations ---------------------------------------------------------------------------


def _conversations(values: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Lists of `{role, content}` turns, as TRL and chat services have them, to prompts and answers; in place."""
    if "prompt" in fields:
        if values.get("prompt") is None and "completion" in fields and "messages" in values:
            values["prompt"], values["completion"] = _last_turn(values.pop("messages"))
        if values.get("prompt") is None and "chosen" in fields:
            _split_pair(values)
        if isinstance(values.get("prompt"), str):
            _repeated(values, fields)
        if _are_turns(values.get("prompt")):
            _unrepeated(values, fields)
            values["prompt"] = Messages(_turns("prompt", values["prompt"]), _tools(values.get("tools")))
        for name in set(ANSWERS) & set(fields):
            if _are_turns(values.get(name)):
                values[name] = _answer(name, _turns(name, values[name]))
    if "segments" in fields and values.get("text") is None and isinstance(values.get("segments"), list):
        texts = [part.get("text") for part in values["segments"] if isinstance(part, Mapping)]
        values["text"] = "".join(text for text in texts if isinstance(text, str)) or None


def _answered(row: Any, rename: Mapping[str, str] | None, turns: Turns) -> Iterator[Any]:
    """A row with `messages` as one for each assistant turn that something precedes; any other, and `last`, as it is."""
    name = (rename or {}).get("messages", "messages")
    messages = row.get(name) if isinstance(row, Mapping) else None
    if isinstance(messages, str) and isinstance(row, formats.Cells):
        messages = formats.decoded(messages)
    ends = [i for i, t in enumerate(messages) if i and t.get("role") == "assistant"] if _are_turns(messages) else []
    if turns == "last" or not isinstance(messages, list) or not ends:
        yield row
        return
    for i in ends:
        yield type(row)(row) | {name: messages[: i + 1]}


def _tools(value: Any) -> list[dict[str, Any]]:
    """The tools a conversation offers, or none."""
    if isinstance(value, str) and value.strip():
        value = formats.decoded(value)
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError("field 'tools' must be a list of objects, as a chat template takes them")
    return value


def _last_turn(messages: Any) -> tuple[list[dict[str, Any]], Any]:
    """A dialogue as what stands before the last answer, and that answer; what follows it answers nothing."""
    if isinstance(messages, str):  # a cell of a table
        messages = formats.decoded(messages)
    turns = _turns("messages", messages)
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    if last == 0:
        raise UserError("field 'messages' must hold an assistant turn with something before it")
    return turns[:last], turns[last : last + 1]


def _split_pair(values: dict[str, Any]) -> None:
    """Two whole dialogues to the prompt they share and how each goes on (hh-rlhf has such pairs); in place."""
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if _are_turns(chosen) and _are_turns(rejected):
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
            limit = min(shared, len(chosen) - 1, len(rejected) - 1)  # both sides go on
            border = max((i for i in range(limit + 1) if chosen[i - 1 : i].isspace()), default=0)
        if border > 0:
            values["prompt"], values["chosen"], values["rejected"] = chosen[:border], chosen[border:], rejected[border:]


def _repeated(values: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """A prompt in text beside whole dialogues (UltraFeedback has such pairs): these say what was asked; in place."""
    if "chosen" in fields:
        sides = [values.get("chosen"), values.get("rejected")]
        if all(_are_turns(side) and len(side) > 1 for side in sides):
            _split_pair(values)
    elif _are_turns(said := values.get("completion")) and len(said) > 1:
        values["prompt"], values["completion"] = said[:-1], said[-1:]


def _unrepeated(values: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Answers that begin with the turns of their prompt, without them; in place."""
    asked = values["prompt"]
    for name in set(ANSWERS) & set(fields):
        said = values.get(name)
        if _are_turns(said) and len(said) > len(asked) and said[: len(asked)] == asked:
            values[name] = said[len(asked) :]


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items (or letters) two lists (or texts) begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _are_turns(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _turns(name: str, value: Any) -> list[dict[str, Any]]:
    """A list of turns, each with a role and a text."""
    if not isinstance(value, list) or not value:
        raise UserError(f'field \'{name}\' must be a list of turns, {{"role": ..., "content": ...}}')
    value = [_with_content(turn) for turn in value]
    for at, turn in enumerate(value, 1):
        for key in ("role", "content"):
            if not isinstance(turn, dict) or not isinstance(turn.get(key), str):
                raise UserError(f"field '{name}', turn {at}: every turn needs a text 'role' and a text 'content'")
    _sound(name, value, numbers=False)
    return value


def _with_content(turn: Any) -> Any:
    """A turn that only calls tools says nothing: services leave its content out, or null."""
    silent = isinstance(turn, dict) and turn.get("tool_calls") and turn.get("content") is None
    return turn | {"content": ""} if silent else turn


def _answer(name: str, turns: list[dict[str, Any]]) -> str:
    roles = [turn["role"] for turn in turns]
    if roles != ["assistant"]:
        raise UserError(
            f"field '{name}' must be one assistant turn, not {', '.join(roles)}; put what precedes it into the prompt"
        )
    text: str = turns[0]["content"]
    return Reply(turns[0]) if turns[0].get("tool_calls") else text


_WORDS = {
    str: "text",
    bytes: "binary that is no UTF-8 text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def _type_name(option: Any) -> str:
    origin = typing.get_origin(option) or option
    inner = [a for a in typing.get_args(option) if a is not Any]
    return "a list of text" if origin is list and inner == [str] else _WORDS.get(origin, str(origin))


def _name(value: Any) -> str:
    return "null" if value is None else _WORDS.get(type(value), type(value).__name__)
