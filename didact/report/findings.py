"""Findings of a method as blocks a page can show: curves, tables, short values, and JSON for whatever is left.

A method that wants a plot puts it under `findings["curves"]`, `{name: curve}`, where a curve is

    {"x": [...], "y": [...], "low": [...], "high": [...], "xlabel": "K", "ylabel": "accuracy", "xscale": "log"}

with only `x` and `y` needed, all lists of one length, null where there is no value; `low` and `high` are the ends of a
95 % interval, `xscale` is `linear` or `log`. Several lines in one plot stand under `lines`, `{name: {"x", "y", "low",
"high"}}`, in place of `x` and `y`. A number with its interval is `{"estimate", "low", "high"}` anywhere. Everything
else is shown by its form:

    a dict of dicts of values, or a list of them   a table
    a dict of anything else                        a heading and its own blocks, three deep
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from didact.report import plots, svg

DEEP = 5  # the lowest heading
SHORT = 12  # values in one line at most


@dataclass(frozen=True, kw_only=True)
class Block:
    """One piece of the page: `kind` is short, curves, table or json; `level` that of its heading."""

    name: str
    kind: str
    value: Any = None
    level: int = 3
    columns: dict[str, bool] = field(default_factory=dict)  # of a table: whether they hold numbers
    figures: list[tuple[str, Markup]] = field(default_factory=list)


def blocks(findings: Mapping[str, Any], name: str = "", level: int = 3) -> list[Block]:
    """What to show, in order: curves, then values in a line each, then all else as it stands."""
    shown = []
    rest = dict(findings)
    curves = rest.get("curves")
    if isinstance(curves, dict) and curves and all(is_curve(v) for v in curves.values()):
        del rest["curves"]
        shown.append(
            Block(name=name, kind="curves", level=level, figures=[(k, _curve(k, v)) for k, v in curves.items()])
        )
    short = {k: v for k, v in rest.items() if _is_short(v)}
    if short:
        shown.append(Block(name="" if shown else name, kind="short", level=level, value=short))
    elif name and not shown:
        shown.append(Block(name=name, kind="heading", level=level))
    for key, value in rest.items():
        if key not in short:
            shown += _blocks(key, value, level + 1 if name else level)
    return shown


def is_curve(value: Any) -> bool:
    """Whether this has the form of a curve, as this module's text says."""
    if not isinstance(value, dict):
        return False
    lines = value.get("lines", {"": value})
    return isinstance(lines, dict) and bool(lines) and all(map(_is_line, lines.values()))


def _is_line(value: Any) -> bool:
    if not isinstance(value, dict) or not {"x", "y"} <= value.keys():
        return False
    columns = [value[name] for name in ("x", "y", "low", "high") if value.get(name) is not None]
    return all(isinstance(c, list) and len(c) == len(value["x"]) and all(map(_is_number, c)) for c in columns)


def _blocks(name: str, value: Any, level: int) -> list[Block]:
    """Blocks of one finding, by its form."""
    if is_curve(value):
        return [Block(name="", kind="curves", level=level, figures=[(name, _curve(name, value))])]
    rows = dict(enumerate(value, 1)) if isinstance(value, list) else value
    if isinstance(rows, dict) and rows and all(map(_is_row, rows.values())):
        names = dict.fromkeys(c for row in rows.values() for c in row)
        columns = {c: not any(isinstance(row.get(c), str | list) for row in rows.values()) for c in names}
        return [Block(name=name, kind="table", level=level, columns=columns, value=rows)]
    if isinstance(value, dict) and level < DEEP:
        return blocks(value, name, level)
    line = json.dumps(value, ensure_ascii=False)
    flat = len(line) <= 100 or (isinstance(value, list) and all(map(_is_plain, value)))
    text = line if flat else json.dumps(value, indent=1, ensure_ascii=False)
    return [Block(name=name, kind="json", level=level, value=text)]


def _curve(name: str, curve: Mapping[str, Any]) -> Markup:
    lines = curve.get("lines", {curve.get("ylabel") or name: curve})
    drawn = [
        plots.Line(str(k), *([svg.number(v) for v in line.get(c) or ()] for c in ("x", "y", "low", "high")))
        for k, line in lines.items()
    ]
    labels = str(curve.get("xlabel") or ""), str(curve.get("ylabel") or "")
    return plots.chart(drawn, *labels, log=curve.get("xscale") == "log", label=name)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_cell, value.values()))


def _is_cell(value: Any) -> bool:
    if isinstance(value, dict):
        return "estimate" in value and all(map(_is_plain, value.values()))
    return _is_plain(value) or (isinstance(value, list) and len(value) <= SHORT and all(map(_is_plain, value)))


def _is_short(value: Any) -> bool:
    if isinstance(value, dict) and not is_curve(value):
        return len(value) <= SHORT and all(_is_cell(v) and not isinstance(v, dict) for v in value.values())
    return _is_cell(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
