"""Files to records, with every mistake named by file, line and field. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from didact.types import RECORDS, Record, UserError

R = TypeVar("R", bound=Record)
SHOWN = 20  # bad lines listed before the rest are only counted


class Records(list[R]):
    """A list of records that remembers the file it came from and how many lines were dropped."""

    path: str | None = None
    dropped: int = 0


def read(
    path: str | Path, kind: str | type[R] = "demo", rename: Mapping[str, str] | None = None, skip_bad: bool = False
) -> Records[R]:
    """Read a JSONL file into records of one kind.

    Args:
        path: the file, one JSON object a line; empty lines are ignored.
        kind: a record class or its name (`demo`, `text`, `preference`, `qa`, `example`).
        rename: the file's field for a record's, `{"prompt": "question"}`.
        skip_bad: drop bad lines and count them in `.dropped` instead of raising.

    Raises:
        UserError: the file is missing, empty, binary, or has bad lines (the first 20 are listed).
    """
    record: Any = kind if isinstance(kind, type) else RECORDS.get(kind)
    if record is None:
        raise UserError(f"unknown record kind '{kind}': use one of {', '.join(RECORDS)}")
    records: Records[R] = Records()
    records.path = str(path)
    problems: list[str] = []
    for number, line in enumerate(_lines(Path(path)), 1):
        if not line.strip():
            continue
        try:
            records.append(parse(line, record, rename))
        except UserError as problem:
            problems.append(f"{path}:{number}: {problem}")
    if problems and not skip_bad:
        more = f"\n... and {len(problems) - SHOWN} more bad lines" if len(problems) > SHOWN else ""
        raise UserError("\n".join(problems[:SHOWN]) + more + "\n(--skip-bad drops and counts such lines)")
    if not records:
        why = f"all {len(problems)} lines are bad" if problems else "it is empty"
        raise UserError(f"{path}: no {record.__name__} record in it: {why}")
    records.dropped = len(problems)
    return records


def parse(line: str, record: type[R], rename: Mapping[str, str] | None = None) -> R:
    """One line of JSON to one record."""
    try:
        row = json.loads(line, parse_constant=lambda name: math.nan)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise UserError(f"not valid JSON: {reason}") from None
    if not isinstance(row, dict):
        raise UserError(f"a JSON object is expected, not {_name(row)}")
    return from_row(row, record, rename)


def from_row(row: Mapping[str, Any], record: type[R], rename: Mapping[str, str] | None = None) -> R:
    """A mapping to one record; unknown fields go to `extra`, a wrong or missing one raises `UserError`."""
    values = dict(row)
    kind: Any = record
    for mine, theirs in (rename or {}).items():
        if theirs in values:
            values[mine] = values.pop(theirs)
    if "messages" in values and "prompt" in _fields(kind) and "prompt" not in values:
        values |= _turn(values.pop("messages"))
    fields = _fields(kind)
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
        _sound(name, [name, value], numbers=False)
    return record(**known, extra={k: v for k, v in extra.items() if k not in known})


def _lines(path: Path) -> Iterable[str]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if b"\0" in raw:
        raise UserError(f"{path}: a binary file; one JSON object a line is expected")
    try:
        return raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; convert the file first") from None


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
        if _fits(value, option):
            _sound(name, value)
            return float(value) if option is float else value
    wanted = " or ".join(_type_name(option) for option in options if option is not type(None))
    raise UserError(f"field '{name}' must be {wanted}, not {_name(value)}")


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
        elif isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
            raise UserError(f"field {name!r} holds half a surrogate pair, which no tokenizer takes; mend the escape")
        elif numbers and isinstance(item, int | float) and not abs(item) <= sys.float_info.max:
            raise UserError(f"field '{name}' holds NaN or an infinity; remove the line or mend the number")


def _turn(messages: Any) -> dict[str, str]:
    """One user turn and one assistant turn as prompt and completion."""
    turns = messages if isinstance(messages, list) else []
    if [m.get("role") if isinstance(m, dict) else None for m in turns] != ["user", "assistant"]:
        raise UserError(
            "field 'messages' must be one user turn and one assistant turn; give longer chats as prompt and completion"
        )
    for m in turns:
        if not isinstance(m.get("content"), str):
            raise UserError("field 'messages': every turn needs a text 'content'")
    return {"prompt": turns[0]["content"], "completion": turns[1]["content"]}


_WORDS = {
    str: "text",
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
