"""Turn a method's findings into blocks of a page: curves, tables, short values, and JSON for everything else.

A method that wants a plot puts it under `findings["curves"]`, `{name: curve}`, where a curve is

    {"x": [...], "y": [...], "low": [...], "high": [...], "xlabel": "K", "ylabel": "accuracy", "xscale": "log"}

Only `x` and `y` are required; lists have equal lengths, with null for missing values; `low` and `high` are the ends of
a 95 % interval, `xscale` is `linear` or `log`. A plot with several lines has them under `lines`, `{name: {"x", "y",
"low", "high"}}`, instead of `x` and `y`. A number with its interval is `{"estimate", "low", "high"}` anywhere. How
everything else is shown depends on its form:

    a dict of dicts of values, or a list of them   a table
    a dict of anything else                        a heading and its own blocks, down to level `MAX_LEVEL`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from didact.report import plots, svg

MAX_LEVEL = 5  # of headings
MAX_VALUES = 12  # in one line


@dataclass(frozen=True, kw_only=True)
class Block:
    """One piece of the page: `kind` is short, curves, table, heading or json; `level` is that of its heading."""

    name: str
    kind: str
    value: Any = None
    level: int = 3
    columns: dict[str, bool] = field(default_factory=dict)  # of a table, `{name: whether it holds numbers}`
    figures: list[tuple[str, Markup]] = field(default_factory=list)


def blocks(findings: Mapping[str, Any], name: str = "", level: int = 3) -> list[Block]:
    """Blocks in display order: curves, then values that fit on one line, then everything else in its own order."""
    out = []
    remaining = dict(findings)
    curves = remaining.get("curves")
    if isinstance(curves, dict) and curves and all(is_curve(v) for v in curves.values()):
        del remaining["curves"]
        out.append(Block(name=name, kind="curves", level=level, figures=[(k, _curve(k, v)) for k, v in curves.items()]))
    short = {k: v for k, v in remaining.items() if _is_short(v)}
    if short:
        out.append(Block(name="" if out else name, kind="short", level=level, value=short))
    elif name and not out:
        out.append(Block(name=name, kind="heading", level=level))
    for key, value in remaining.items():
        if key not in short:
            out += _finding_blocks(key, value, level + 1 if name else level)
    return out


def is_curve(value: Any) -> bool:
    """Whether this is a curve as the module docstring defines it."""
    if not isinstance(value, dict):
        return False
    lines = value.get("lines", {"": value})
    return isinstance(lines, dict) and bool(lines) and all(map(_is_line, lines.values()))


def _is_line(value: Any) -> bool:
    if not isinstance(value, dict) or not {"x", "y"} <= value.keys():
        return False
    series = [value[name] for name in ("x", "y", "low", "high") if value.get(name) is not None]
    return all(isinstance(c, list) and len(c) == len(value["x"]) and all(map(_is_number, c)) for c in series)


def _finding_blocks(name: str, value: Any, level: int) -> list[Block]:
    """Blocks of one finding, depending on its form."""
    if is_curve(value):
        return [Block(name="", kind="curves", level=level, figures=[(name, _curve(name, value))])]
    rows = dict(enumerate(value, 1)) if isinstance(value, list) else value
    if isinstance(rows, dict) and rows and all(map(_is_row, rows.values())):
        names = dict.fromkeys(c for row in rows.values() for c in row)
        columns = {c: not any(isinstance(row.get(c), str | list) for row in rows.values()) for c in names}
        return [Block(name=name, kind="table", level=level, columns=columns, value=rows)]
    if isinstance(value, dict) and level < MAX_LEVEL:
        return blocks(value, name, level)
    compact = json.dumps(value, ensure_ascii=False)
    one_line = len(compact) <= 100 or (isinstance(value, list) and all(map(_is_scalar, value)))
    text = compact if one_line else json.dumps(value, indent=1, ensure_ascii=False)
    return [Block(name=name, kind="json", level=level, value=text)]


def _curve(name: str, curve: Mapping[str, Any]) -> Markup:
    lines = curve.get("lines", {curve.get("ylabel") or name: curve})
    plotted = [
        plots.Line(str(k), *([svg.number(v) for v in line.get(c) or ()] for c in ("x", "y", "low", "high")))
        for k, line in lines.items()
    ]
    labels = str(curve.get("xlabel") or ""), str(curve.get("ylabel") or "")
    return plots.chart(plotted, *labels, log=curve.get("xscale") == "log", label=name)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_cell, value.values()))


def _is_cell(value: Any) -> bool:
    if isinstance(value, dict):
        return "estimate" in value and all(map(_is_scalar, value.values()))
    return _is_scalar(value) or (isinstance(value, list) and len(value) <= MAX_VALUES and all(map(_is_scalar, value)))


def _is_short(value: Any) -> bool:
    if isinstance(value, dict) and not is_curve(value):
        return len(value) <= MAX_VALUES and all(_is_cell(v) and not isinstance(v, dict) for v in value.values())
    return _is_cell(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
