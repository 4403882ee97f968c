"""Read files into records; errors name the file, line and field. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from didact.data import contexts, dialogues, fields, formats
from didact.data.dialogues import Turns
from didact.types import RECORDS, Demo, Preference, Record, Trial, UserError

R = TypeVar("R", bound=Record)
CANARY = "big-bench-canary"  # a row with this field alone marks a benchmark's file and is not a record
SHOWN = 20  # bad lines listed before the rest are only counted


class Records(list[R]):
    """A list of records that remembers the file it came from, the line of each, and how many lines were dropped."""

    path: str | None = None
    dropped: int = 0

    def __init__(self, *records: Any) -> None:
        super().__init__(*records)
        self.places: list[str] = []  # location of each record, `file:line`

    def __repr__(self) -> str:
        """Number and kind of the records, their file and the first one, in one line for notebooks."""
        kind = type(self[0]).__name__ if self else "no"
        first = f", first {self[0]!r:.200}" if self else ""
        return f"Records({len(self):,} {kind}{f' from {self.path}' if self.path else ''}{first})"


def read(
    path: str | Path,
    kind: str | type[R] = "demo",
    rename: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    turns: Turns = "last",
    unanswered: bool = False,
) -> Records[R]:
    """Read a file, a folder of `datasets` or a hub reference into records of one kind.

    Args:
        path: what to read; `data.formats` lists the formats. Empty lines are ignored.
        kind: a record class or its name (`demo`, `text`, `preference`, ...).
        rename: the file's name for a record's field, `{"prompt": "question"}`.
        skip_bad: drop bad lines and count them in `.dropped` instead of raising.
        turns: which assistant turns of `messages` are completions; `all` makes a record of each, after all that
            precedes it.
        unanswered: allow demonstrations without a completion, which is then empty: questions to be answered.

    Raises:
        UserError: the file is missing, empty, binary, or has bad lines (the first 20 are listed).
    """
    record: Any = kind if isinstance(kind, type) else RECORDS.get(kind)
    if record is None:
        raise UserError(f"unknown record kind '{kind}': use one of {', '.join(RECORDS)}")
    if (ready := _AHEAD.pop(_key(path, record, rename, skip_bad, turns, unanswered), None)) is not None:
        return ready
    records: Records[R] = Records()
    records.path = str(path)
    problems: list[tuple[str, str]] = []
    labels = False
    for place, raw in formats.rows(path):
        if isinstance(raw, Mapping) and set(raw) == {CANARY}:
            continue
        try:
            labels = labels or (
                record is Demo and isinstance(raw, Mapping) and bool(fields.label_of(raw, rename or {}))
            )
            for row in contexts.both_ways(raw) if record is Preference else dialogues.answered(raw, rename, turns):
                records.append(from_row(row, record, rename, unanswered))
                records.places.append(place)
        except UserError as problem:
            problems.append((place, str(problem)))
    if problems and not skip_bad:
        raise UserError(listed(problems))
    if not records:
        reason = f"all {len(problems)} lines are bad" if problems else "it is empty"
        raise UserError(f"{path}: no {record.__name__} record in it: {reason}")
    records.dropped = len(problems)
    if labels:
        records[:] = _with_choices(records)
    return records


_AHEAD: dict[Any, Any] = {}  # records that `ahead` read and `read` has not returned yet


def ahead(path: str | Path, kind: str, *options: Any) -> Records[Any]:
    """Read records, and cache them for the next `read` with these arguments while the file is unchanged."""
    records: Records[Any] = read(path, kind, *options)
    _AHEAD[_key(path, RECORDS[kind], *options)] = records
    return records


def _key(
    path: str | Path,
    record: Any,
    rename: Mapping[str, str] | None,
    skip_bad: bool,
    turns: Turns,
    unanswered: bool = False,
) -> Any:
    file = next((p for p in (Path(path), Path(str(path).rpartition(":")[0])) if p.is_file()), None)
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file else None
    return str(path), record, tuple(sorted((rename or {}).items())), skip_bad, turns, unanswered, stamp


def _with_choices(demos: Sequence[Any]) -> list[Any]:
    """Give classification demonstrations all labels of the file as choices, unless they have their own."""
    labels = fields.classes([d.completion for d in demos])
    return [dataclasses.replace(d, choices=labels) if labels and d.choices is None else d for d in demos]


def listed(problems: Sequence[tuple[str, str]]) -> str:
    """Format bad lines, given as `(location, error)`: each error once, with its number of lines; then a hint."""
    places: dict[str, list[str]] = {}
    for place, problem in problems:
        places.setdefault(problem, []).append(place)
    lines = [f"{at[0]}{f' and {len(at) - 1} more' if at[1:] else ''}: {problem}" for problem, at in places.items()]
    omitted = sum(len(at) for at in list(places.values())[SHOWN:])
    footer = [f"... and {omitted} more bad lines"] if omitted else []
    return "\n".join([*lines[:SHOWN], *footer, "(--skip-bad drops and counts such lines)"])


def parse(line: str, record: type[R], rename: Mapping[str, str] | None = None) -> R:
    """Parse one line of JSON into a record."""
    return from_row(formats.decoded(line), record, rename)


def from_row(row: formats.Row, record: type[R], rename: Mapping[str, str] | None = None, unanswered: bool = False) -> R:
    """Convert a mapping to a record; unknown fields go to `extra`, a wrong or missing one raises `UserError`."""
    if isinstance(row, UserError):
        raise row
    if not isinstance(row, Mapping):
        raise UserError(f"a JSON object is expected, not {_name(row)}")
    kind: Any = record
    values, schema = dict(row), _fields(kind)
    fields.instructed(values, schema, rename or {})
    if record is Demo:
        fields.labelled(values, rename or {})
    for ours, theirs in (rename or {}).items():
        if theirs in values:
            values[ours] = values.pop(theirs)
    if isinstance(row, formats.Cells):
        values |= {k: _typed(v, schema[k][0]) for k, v in values.items() if k in schema}
    if record in (Demo, Trial):
        fields.points(values, schema)
    dialogues.conversations(values, schema)
    fields.answers(values, schema)
    if record is Demo:
        fields.judged(values)
    parsed: dict[str, Any] = {}
    for name, (types_, required) in schema.items():
        value = values.pop(name, None)
        if value is None:
            if unanswered and record is Demo and name == "completion":
                value = ""
            elif required:
                raise UserError(fields.missing(name, row, [n for n, (_, must) in schema.items() if must]))
            else:
                continue
        parsed[name] = _checked(name, value, types_)
    extra = values.pop("extra", {})
    extra = values | (extra if isinstance(extra, dict) else {"extra": extra})
    for name, value in extra.items():
        extra[name] = value = _printable(value)
        fields.sound(name, [name, value], numbers=False)
    return record(**parsed, extra={k: v for k, v in extra.items() if k not in parsed})


def _printable(value: Any) -> Any:
    """Convert binary anywhere in a value to its Python representation."""
    if isinstance(value, dict):
        return {k: _printable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_printable(v) for v in value]
    return str(value) if isinstance(value, bytes) else value


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
            fields.sound(name, value)
            return float(value) if option is float else value
    kinds = " or ".join(_type_name(option) for option in options if option is not type(None))
    hint = (
        " (in a table, write it as JSON)" if isinstance(value, str) and kinds.startswith(("a list", "an obj")) else ""
    )
    raise UserError(f"field '{name}' must be {kinds}, not {_name(value)}{hint}")


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


def _part(option: Any) -> type[Record] | None:
    """The record type of a field that is a list of records (a trajectory's steps, a text's segments), else None."""
    inner = typing.get_args(option) if typing.get_origin(option) is list else ()
    return inner[0] if inner and isinstance(inner[0], type) and issubclass(inner[0], Record) else None


def _nested(name: str, at: int, item: Any, part: type[Record]) -> Record:
    try:
        return from_row(item, part)
    except UserError as problem:
        raise UserError(f"field '{name}', item {at}: {str(problem).partition(' (--map')[0]}") from None


def _typed(text: Any, options: tuple[Any, ...]) -> Any:
    """Convert a table's cell to its field's type; what does not fit stays text, for the check to report."""
    if str in options:
        return text
    if bool in options:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    try:
        return float(text) if float in options else formats.decoded(text)
    except (ValueError, UserError):
        return text


_WORDS = {
    str: "text",
    bytes: "binary that is not UTF-8 text",
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
