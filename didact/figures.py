"""Figures that a method declares as data; the report page of a run draws them.

    result.figures.append(figures.Curves(title="Loss", x="examples", y="loss", lines=[figures.Line("ours", x, y)]))

`figure.save("picture.svg")` writes one alone, and a notebook shows it. Numbers may be lists, arrays or tensors; a
NaN leaves a gap. Every axis has a label with its unit; names are written beside their marks.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from didact import files
from didact.errors import UserError

Numbers = Sequence[float | None]
Tree = Any  # a word's index, or (label, [trees])


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Base of all figures: a title, and a note under the picture on how to read it."""

    title: str
    note: str = ""

    def svg(self) -> str:
        """Return the picture as SVG; it follows the viewer's light or dark theme."""
        picture: str = importlib.import_module(".report.drawing", "didact").standalone_svg(as_row(self))
        return picture

    _repr_svg_ = svg  # the name that notebooks look for

    def save(self, path: str | Path) -> None:
        """Write the picture as an SVG file."""
        with files.new_file(path) as temporary:
            temporary.write_text(self.svg(), encoding="utf-8")


@dataclass(frozen=True)
class Line:
    """Points of one curve; `low` and `high` are the ends of the interval of each, if any."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()

    def __post_init__(self) -> None:
        lengths = [len(c) for c in (self.x, self.y, self.low, self.high)]
        if not (
            lengths[0] == lengths[1] and {*lengths[2:]} <= {lengths[0]} | ({0} if lengths[2] == lengths[3] else set())
        ):
            raise UserError(f"line '{self.name}': x, y, low, high have {', '.join(map(str, lengths))} values")


@dataclass(frozen=True, kw_only=True)
class Curves(Figure):
    """Lines with bands on labelled axes. `levels` are named horizontal lines: a floor, chance; `log`: logarithmic x."""

    x: str
    y: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat(Figure):
    """A number for every row and column, as shade: a phase map, attention. `value` is the numbers' label.

    `ends` are the values of no and full shade; by default the least and the greatest number.
    """

    x: str
    y: str
    value: str
    columns: Sequence[str | float]
    rows: Sequence[str | float]
    values: Sequence[Numbers]
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.values}
        if len(self.values) != len(self.rows) or widths - {len(self.columns)}:
            shape = f"{len(self.values)} x {' or '.join(map(str, sorted(widths)))}"
            raise UserError(f"heat map '{self.title}': {len(self.rows)} x {len(self.columns)} names, {shape} values")


@dataclass(frozen=True)
class Bar:
    """A number with its interval, if any; bars of one `group` are drawn together under its name."""

    name: str
    estimate: float | None
    low: float | None = None
    high: float | None = None
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars(Figure):
    """Bars from 0 with intervals; `x` is their label, `levels` are named lines: a floor, chance."""

    x: str
    bars: Sequence[Bar]
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Points:
    """Dots of one kind; `names`, if given, are written beside them."""

    name: str
    x: Numbers
    y: Numbers
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.names) not in (0, len(self.x)):
            raise UserError(f"points '{self.name}': {len(self.x)} x, {len(self.y)} y, {len(self.names)} names")


@dataclass(frozen=True, kw_only=True)
class Scatter(Figure):
    """Dots; with `diagonal` the line where both are equal."""

    x: str
    y: str
    points: Sequence[Points]
    diagonal: bool = False


@dataclass(frozen=True, kw_only=True)
class Trees(Figure):
    """Trees over the same words, side by side; the first is the true one, and differences from it are marked.

    A tree is a word's index, or a pair of a label and the trees below it: `("call", [0, ("args", [1, 2])])`.
    """

    words: Sequence[str]
    trees: Mapping[str, Tree]


@dataclass(frozen=True)
class Span:
    """A stretch of time in one row; spans of one `kind` look alike."""

    row: int
    start: float
    end: float
    text: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Timeline(Figure):
    """Who does what when: a row for each, with spans of time. `x` is the unit of time."""

    x: str
    rows: Sequence[str]
    spans: Sequence[Span]

    def __post_init__(self) -> None:
        if bad := next((s for s in self.spans if not 0 <= s.row < len(self.rows)), None):
            raise UserError(f"timeline '{self.title}': a span in row {bad.row} of {len(self.rows)}")


KINDS = {kind.__name__.lower(): kind for kind in (Curves, Heat, Bars, Scatter, Trees, Timeline)}
PARTS = {"lines": Line, "bars": Bar, "points": Points, "spans": Span}


def as_row(figure: Figure) -> dict[str, Any]:
    """Return a figure as JSON: its `kind` and its fields."""
    return {"kind": type(figure).__name__.lower(), **files.plain(figure)}


def read(folder: str | Path) -> list[Figure]:
    """Read the figures of a run's folder.

    Raises:
        UserError: it holds none, or `figures.json` is damaged.
    """
    path = Path(folder) / "figures.json"
    if not path.exists():
        raise UserError(f"{path}: no such file: the run drew no figures")
    rows = files.read_json(path)
    try:
        return [of_row(row) for row in rows]
    except (TypeError, KeyError, AttributeError, ValueError, UserError) as error:
        raise UserError(f"{path}: not figures of didact ({error}); repeat the run") from None


def of_row(row: Mapping[str, Any]) -> Figure:
    """Return the figure that `as_row` wrote."""
    kind = KINDS[row["kind"]]
    names = {f.name for f in fields(kind)}
    arguments = {name: value for name, value in row.items() if name in names}
    for name, part in PARTS.items():
        if name in arguments:
            arguments[name] = [part(**piece) for piece in arguments[name]]
    return kind(**arguments)
