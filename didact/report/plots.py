"""SVG for pages, written by hand: a few lines, dots and bars, and no library's style sheet to take out again.

Colours and fonts are the page's, through classes, so that one text serves light, dark and print. What a plot shows is
also said in its label, for those who hear the page. Everything that comes from a file is escaped here.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from didact.report import words

POINTS = 400  # of a line at most; more are averaged
FEW = 12  # points up to which each is marked, its interval a whisker and not part of a band
CHARACTER = 6.1  # px, about the width of one at the plots' 11 px
SERIES = 6  # kinds of line the page's style sheet knows
LOG = 50  # times the smallest must be the largest before a strip's axis is logarithmic
SIDED = ("difference", "bound")  # tests that hold on one side of their null


@dataclass(frozen=True)
class Line:
    """One line of a chart; values that are not finite leave a gap. `low` and `high` are empty or as long as `y`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def of_rows(rows: Sequence[Mapping[str, Any]], y: str, x: str = "step") -> Line:
    """Column `y` of `rows` against column `x`; what is no number is NaN."""
    return Line(y, [number(row.get(x)) for row in rows], [number(row.get(y)) for row in rows])


# --- curves ----------------------------------------------------------------------------------


def chart(
    lines: Sequence[Line],
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
    label: str = "",
    width: int = 380,
    height: int = 210,
) -> Markup:
    """Lines with their intervals on labelled axes; `log` spaces x logarithmically, `label` begins what is read out."""
    told = "; ".join(_told(line, xlabel or "x") for line in lines)
    run = max((math.ceil(len(line.x) / POINTS) for line in lines), default=1)
    lines = [_thinned(line, run) for line in lines]
    xs = [a for line in lines for a, b in zip(line.x, line.y, strict=True) if _shown(a, b, log)]
    ys = [v for line in lines for column in (line.y, line.low, line.high) for v in column if math.isfinite(v)]
    if not xs or not ys:
        return _root(width, 40, f"{label}: {told}" if label else told, [_text(8, 24, "no finite value", "soft")])
    yticks = _around(min(ys), max(ys), 4)
    ynames, factor = _names(yticks)
    left, right = 12 + CHARACTER * max(map(len, ynames)), width - 14
    legend, top = _legend(lines, left, width) if len(lines) > 1 else ([], 8.0)
    if head := " ".join(filter(None, (ylabel, factor and f"({factor})"))):
        legend.append(_text(left - 6, top + 10, _fit(head, width - left), "soft"))
        top += 20
    bottom = height - 36
    low, high = min(xs), max(xs)
    pad = 12.0 if len(xs) <= FEW * len(lines) else 3.0
    across = _scale(low, high, left + pad, right - pad, log)
    up = _scale(yticks[0], yticks[-1], bottom, top + 2)
    parts = [_line(left, up(v), right, up(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [_text(left - 7, up(v) + 3.8, name, "tick end") for v, name in zip(yticks, ynames, strict=True)]
    xticks, xfactor = _xticks(xs, across, log)
    parts += _bottom(xticks, across, bottom)
    means = f"means of {run}" if run > 1 else ""
    if below := " ".join(filter(None, (xlabel, *(f"({more})" for more in (xfactor, means) if more)))):
        parts.append(_text((left + right) / 2, height - 5, _fit(below, right - left), "soft middle"))
    for place, line in enumerate(lines):
        apart = 5.0 * (place - (len(lines) - 1) / 2) if line.low and len(line.x) <= FEW else 0.0
        parts += _drawn(line, place % SERIES + 1, across, up, apart, log)
    return _root(width, height, f"{label}: {told}" if label else told, legend + parts)


def _drawn(
    line: Line, kind: int, x_of: Callable[[float], float], up: Callable[[float], float], apart: float, log: bool
) -> list[str]:
    """A line's band or whiskers, its path, and a mark on each point where there are few; moved right by `apart`."""

    def across(v: float) -> float:
        return x_of(v) + apart

    ends = [line.low or [math.nan] * len(line.y), line.high or [math.nan] * len(line.y)]
    points = list(zip(line.x, line.y, *ends, strict=True))
    parts, path, pen = [], [], "M"
    few = len(points) <= FEW
    band: list[tuple[float, float, float]] = []
    for x, y, low, high in [*points, (math.nan,) * 4]:
        if not few and not (_shown(x, low, log) and math.isfinite(high)):
            if len(band) > 1:
                edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
                parts.append(f'<path class="area s{kind}" d="M{" ".join(f"{a:.1f} {b:.1f}" for a, b in edge)}Z"/>')
            band = []
        elif not few:
            band.append((across(x), up(low), up(high)))
        elif _shown(x, low, log) and math.isfinite(high):
            parts.append(_line(across(x), up(low), across(x), up(high), f"line s{kind} whole"))
        if not _shown(x, y, log):
            pen = "M"
            continue
        path.append(f"{pen}{across(x):.1f} {up(y):.1f}")
        pen = "L"
        if few:
            parts.append(_mark(kind, across(x), up(y)))
    return [f'<path class="line s{kind}" d="{"".join(path)}"/>', *parts]


def _mark(kind: int, x: float, y: float) -> str:
    """A point; each kind of line has a shape of its own."""
    shapes = (
        "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z", "M-3 -3H3V3H-3Z", "M0 -4L4 3H-4Z",
        "M0 -4.4L4.4 0L0 4.4L-4.4 0Z", "M0 4L4 -3H-4Z", "M-4 -1.2H-1.2V-4H1.2V-1.2H4V1.2H1.2V4H-1.2V1.2H-4Z",
    )  # fmt: skip
    return f'<path class="mark s{kind}" transform="translate({x:.1f} {y:.1f})" d="{shapes[kind - 1]}"/>'


def _legend(lines: Sequence[Line], left: float, width: float) -> tuple[list[str], float]:
    """Names beside a piece of their line, wrapped; and where the plot may begin."""
    parts, x, y = [], left - 4, 10.0
    for place, line in enumerate(lines):
        kind, name = place % SERIES + 1, _fit(line.name, width - left - 40)
        needed = 40 + CHARACTER * len(name)
        if x > left and x + needed > width:
            x, y = left - 4, y + 17
        parts.append(_line(x, y, x + 20, y, f"line s{kind}"))
        parts += [_mark(kind, x + 10, y)] if len(line.x) <= FEW else []
        parts.append(_text(x + 26, y + 3.8, name, ""))
        x += needed
    return parts, y + 14


def _xticks(xs: Sequence[float], across: Callable[[float], float], log: bool) -> tuple[list[tuple[float, str]], str]:
    """Ticks at the values themselves where they are few and their names have room, else at round numbers.

    And the power of ten that their names leave out.
    """
    at = sorted(set(xs))
    named = [(v, words.minus(f"{v:g}")) for v in at]
    room = [across(b[0]) - across(a[0]) - CHARACTER * (len(a[1]) + len(b[1])) / 2 for a, b in itertools.pairwise(named)]
    if len(at) <= 8 and all(gap > 4 for gap in room):
        return named, ""
    if log:
        return _decades(at[0], at[-1]), ""
    ticks = [v for v in _around(at[0], at[-1], 5) if at[0] <= v <= at[-1] * (1 + 1e-9)]
    names, factor = _names(ticks)
    return list(zip(ticks, names, strict=True)), factor


def _bottom(ticks: Sequence[tuple[float, str]], across: Callable[[float], float], y: float) -> list[str]:
    parts = [_line(across(v), y, across(v), y + 4, "axis") for v, _ in ticks]
    return parts + [_text(across(v), y + 15, name, "tick middle") for v, name in ticks]


def _thinned(line: Line, run: int) -> Line:
    """Means of `run` values each."""
    if run <= 1:
        return line
    columns = (line.x, line.y, line.low, line.high)
    return Line(line.name, *([_mean(c[i : i + run]) for i in range(0, len(c), run)] for c in columns))


def _told(line: Line, x: str) -> str:
    known = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not known:
        return f"{line.name}: no finite value"
    (first, start), (last, end) = known[0], known[-1]
    if len(known) == 1:
        return f"{line.name} is {start:.3g} at {x} {first:.4g}"
    return f"{line.name} goes from {start:.3g} at {x} {first:.4g} to {end:.3g} at {x} {last:.4g}"


# --- one row of a table ----------------------------------------------------------------------

MARK = 190  # px, the width of a metric's mark
INSET = 9.0  # px, left and right of its scale


def is_share(metric: Mapping[str, Any]) -> bool:
    """Whether all of a metric lies between 0 and 1, and it has no unit: such metrics have one scale."""
    return not metric.get("unit") and all(0 <= v <= 1 for v in _known(metric))


def share_axis() -> Markup:
    """The scale of those metrics, for the head of their column."""
    at = _scale(0, 1, INSET, MARK - INSET)
    parts = [_line(INSET, 18, MARK - INSET, 18, "axis")]
    for v, name in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        parts += [_line(at(v), 14, at(v), 18, "axis"), _text(at(v), 10, name, "tick middle")]
    return _root(MARK, 20, "scale from 0 to 1", parts, "row")


def change(metric: Mapping[str, Any]) -> Markup | str:
    """A metric: a ring before, a dot with its interval after, an upright for gold. Without a value, nothing."""
    before, after, gold = (number(metric.get(name)) for name in ("before", "after", "gold"))
    known = _known(metric)
    if not known or not math.isfinite(after):
        return ""
    share = is_share(metric)
    low, high = (0.0, 1.0) if share else (min(known), max(known))
    at = _scale(low, high, INSET, MARK - INSET)
    ticks = [0.0, 0.5, 1.0] if share else [v for v in _around(low, high, 3) if low <= v <= high] or [low]
    parts = [_line(at(v), 2, at(v), 22, "grid") for v in ticks]
    parts.append(_line(INSET, 12, MARK - INSET, 12, "grid"))
    if math.isfinite(before):
        parts.append(_line(at(before), 12, at(after), 12, "way"))
    told = f"after {after:.3g}"
    ends = _ends(metric.get("ci"))
    if ends:
        parts += _whiskers(at(ends[0]), at(ends[1]), 12)
        told += f", 95 % interval {ends[0]:.3g} to {ends[1]:.3g}"
    if math.isfinite(gold):
        parts.append(_line(at(gold), 3, at(gold), 21, "gold"))
        told += f", gold {gold:.3g}"
    if math.isfinite(before):
        parts.append(f'<circle class="ring" cx="{at(before):.1f}" cy="12" r="4.2"/>')
        told = f"before {before:.3g}, {told}"
    parts.append(f'<circle class="dot" cx="{at(after):.1f}" cy="12" r="4.2"/>')
    if not share:
        names, factor = _names(ticks)
        parts += _labels(
            [(at(v), name + (factor if v else "")) for v, name in zip(ticks, names, strict=True)], 34, MARK
        )
    scale = f"; the scale runs from {low:.3g} to {high:.3g}"
    return _root(MARK, 24 if share else 37, told + scale, parts, "row")


def test(row: Mapping[str, Any], width: int = 200) -> Markup | str:
    """A claim's test: estimate and interval, its null, and shaded where it holds. Every row has its own scale.

    Dashes mark the null plus the smallest effect of interest: an interval wholly short of it fails.
    """
    null, margin, estimate = float(row["null"]), float(row.get("margin") or 0.0), number(row.get("estimate"))
    if not math.isfinite(estimate):
        return ""
    ends = _ends(row.get("interval"))
    sided, sign = row["kind"] in SIDED, -1 if row["direction"] == "less" else 1
    # Everything is drawn as a distance from the null: tolerances of 1e-9 are lost beside a null of 1.
    region = [0.0, sign * margin] if sided else [-margin, margin]
    reach = [v - null for v in (estimate, *ends)] + [0.0, *region]
    pad = 0.14 * (max(reach) - min(reach)) or 1.0
    at = _scale(min(reach) - pad, max(reach) + pad, 6, width - 6)
    edge = (at(0.0), 6.0 if sign < 0 else width - 6.0) if sided else (at(-margin), at(margin))
    left, wide = min(edge), max(abs(edge[1] - edge[0]), 1.0)
    parts = [f'<rect class="region" x="{left:.1f}" y="2" width="{wide:.1f}" height="24"/>']
    parts += [_line(6, 26, width - 6, 26, "axis"), _line(at(0), 2, at(0), 30, "null")]
    labels = [(at(0), words.short(null))]
    if sided and margin:
        parts.append(_line(at(sign * margin), 4, at(sign * margin), 26, "least"))
        labels.append((at(sign * margin), words.short(null + sign * margin)))
    if not sided and margin:
        labels += [(at(margin), f"+{words.short(margin)}"), (at(-margin), f"−{words.short(margin)}")]
    parts += _labels(labels, 40, width)
    told = f"estimate {estimate:.4g}, null {null:.4g}"
    if ends:
        parts += _whiskers(at(ends[0] - null), at(ends[1] - null), 14)
        told += f", interval {ends[0]:.4g} to {ends[1]:.4g}"
    parts.append(f'<rect class="dot" x="{at(estimate - null) - 3.8:.1f}" y="10.2" width="7.6" height="7.6"/>')
    return _root(width, 43, f"{row['name']}: {told}: {row['outcome']}", parts, "row")


def _whiskers(left: float, right: float, y: float) -> list[str]:
    bars = [_line(x, y - 4, x, y + 4, "span") for x in (left, right)]
    return [_line(left, y, right, y, "span"), *bars]


def _labels(named: Sequence[tuple[float, str]], y: float, width: float) -> list[str]:
    """Names under their places, kept inside the picture; one that would touch an earlier one is left out."""
    parts: list[str] = []
    drawn: list[tuple[float, float]] = []
    for x, name in named:
        half = CHARACTER * len(name) / 2
        x = min(max(x, half), width - half)
        if all(x - half > b + 4 or x + half < a - 4 for a, b in drawn):
            parts.append(_text(x, y, name, "tick middle"))
            drawn.append((x - half, x + half))
    return parts


def _known(metric: Mapping[str, Any]) -> list[float]:
    values = [number(metric.get(name)) for name in ("before", "after", "gold")] + _ends(metric.get("ci"))
    return [v for v in values if math.isfinite(v)]


# --- a comparison ----------------------------------------------------------------------------

CLOSE = 9.0  # px between points of a scatter below which they are moved apart
LINE = 14.0  # px, the height of a label


@dataclass(frozen=True)
class Point:
    """One arm of a scatter: its interval is `low` to `high`, NaN where it has none; a ring where not `full`."""

    name: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    full: bool = True


def span(values: Sequence[float]) -> tuple[float, float]:
    """A round scale, as close as it goes, that holds all finite `values`."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    ticks = _around(min(known), max(known), 4)
    return ticks[0], ticks[-1]


def ruler(ends: tuple[float, float]) -> Markup:
    """The scale of `interval`s, for the head of their column."""
    at = _scale(*ends, INSET, MARK - INSET)
    ticks = [v for v in _around(*ends, 2) if ends[0] <= v <= ends[1]]
    names, factor = _names(ticks)
    parts = [_line(INSET, 18, MARK - INSET, 18, "axis"), *(_line(at(v), 14, at(v), 18, "axis") for v in ticks)]
    named = [(at(v), name + (factor if v else "")) for v, name in zip(ticks, names, strict=True)]
    return _root(MARK, 20, f"scale from {ends[0]:.3g} to {ends[1]:.3g}", parts + _labels(named, 10, MARK), "row")


def interval(
    estimate: float,
    limits: Sequence[float | None] | None,
    ends: tuple[float, float],
    levels: Mapping[str, tuple[float, str]] | None = None,
    full: bool = True,
    name: str = "",
) -> Markup | str:
    """An estimate with its interval on the scale `ends`, for a row of a table. Without an estimate, nothing.

    `levels` are uprights, `{what: (value, class)}`; a ring in place of the dot where not `full`.
    """
    if not math.isfinite(estimate):
        return ""
    at = _scale(*ends, INSET, MARK - INSET)
    parts = [_line(INSET, 12, MARK - INSET, 12, "grid")]
    parts += [_line(at(v), 1, at(v), 23, kind) for v, kind in (levels or {}).values() if math.isfinite(v)]
    told = f"{name}: {estimate:.3g}"
    if known := _ends(limits):
        parts += _whiskers(at(known[0]), at(known[1]), 12)
        told += f", 95 % interval {known[0]:.3g} to {known[1]:.3g}"
    parts.append(f'<circle class="{"dot" if full else "ring"}" cx="{at(estimate):.1f}" cy="12" r="4.2"/>')
    told += "".join(f"; {what} {v:.3g}" for what, (v, _) in (levels or {}).items())
    return _root(MARK, 24, told, parts, "row")


def scatter(
    points: Sequence[Point],
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, tuple[float, str]] | None = None,
    limit: tuple[str, float] | None = None,
    width: int = 400,
) -> Markup:
    """Points with upright intervals and their names beside them; x starts at 0, so that equal costs look equal.

    Points at nearly one place are moved apart sideways. `levels` are lines across, `{what: (value, class)}`,
    `limit` an upright with its name.
    """
    lines = {what: (v, kind) for what, (v, kind) in (levels or {}).items() if math.isfinite(v)}
    known = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    told = "; ".join(
        [f"{p.name} {p.y:.3g} at {p.x:.3g}" for p in points] + [f"{k} {v:.3g}" for k, (v, _) in lines.items()]
    )
    ys = [v for p in known for v in (p.y, p.low, p.high) if math.isfinite(v)] + [v for v, _ in lines.values()]
    if not ys:
        return _root(width, 40, told, [_text(8, 24, "no finite value", "soft")])
    yticks = _around(min(ys), max(ys), 4)
    ynames, factor = _names(yticks)
    most = max([p.x for p in known] + ([limit[1]] if limit else []), default=0.0) or 1.0
    xticks = [v for v in _around(0.0, most, 4) if v <= most * (1 + 1e-9)]
    left, right, top = 12 + CHARACTER * max(map(len, ynames)), width - 16.0, 32.0
    bottom = top + max(190.0, LINE * (len(known) + len(lines) + 2))
    across, up = _scale(0.0, 1.03 * most, left + 6, right), _scale(yticks[0], yticks[-1], bottom, top)
    parts = [_line(left, up(v), right, up(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [_text(left - 7, up(v) + 3.8, name, "tick end") for v, name in zip(yticks, ynames, strict=True)]
    parts += _bottom([(v, words.minus(f"{v:g}") if v < 1e3 else words.many(v)) for v in xticks], across, bottom)
    parts.append(_text(left - 6, 12, _fit(" ".join(filter(None, (ylabel, factor))), right - left), "soft"))
    parts.append(_text((left + right) / 2, bottom + 31, _fit(xlabel, right - left), "soft middle"))
    if limit:
        at = across(limit[1])
        parts += [_line(at, top, at, bottom, "least"), _text(at + 4, top - 7, limit[0], "soft end")]
    parts += [_line(left, up(v), right, up(v), kind) for v, kind in lines.values()]
    places = _apart([across(p.x) for p in known], [up(p.y) for p in known], left, right)
    parts += _names_beside(known, places, up, {k: up(v) for k, (v, _) in lines.items()}, (left, right), (top, bottom))
    for p, x in zip(known, places, strict=True):
        if math.isfinite(p.low) and math.isfinite(p.high):
            parts.append(_line(x, up(p.low), x, up(p.high), "span"))
        dot = f'<circle class="{"dot" if p.full else "ring"}" cx="{x:.1f}" cy="{up(p.y):.1f}" r="4.4"><title>'
        parts.append(f"{dot}{html.escape(f'{p.name}: {p.y:.4g} at {p.x:.4g}')}</title></circle>")
    return _root(width, bottom + 36, f"{ylabel} by {xlabel}: {told}", parts, "chart broad")


def _names_beside(
    points: Sequence[Point],
    places: Sequence[float],
    up: Callable[[float], float],
    lines: Mapping[str, float],
    sides: tuple[float, float],
    room: tuple[float, float],
) -> list[str]:
    """Names of points on their side towards the middle, tied to them by a thin line, and names of lines at the left.

    `sides` and `room` are the plot's edges in x and in y; names of one side do not overlap.
    """
    left, right = sides
    texts: dict[str, list[tuple[float, float, str, float]]] = {"end": [], "": []}  # y, x, name, its point's x
    for p, x in zip(points, places, strict=True):
        near = [b for b in places if abs(b - x) < len(points) * CLOSE]  # names stand beyond a point's neighbours
        if x > (left + right) / 2:
            texts["end"].append((up(p.y), min(near) - 12, p.name, x))
        else:
            texts[""].append((up(p.y), max(near) + 12, p.name, x))
    texts[""] += [(y - 8, left + 8, name, left + 8) for name, y in lines.items()]
    parts = []
    for kind, named in texts.items():
        named.sort()
        for y, (wanted, x, name, point) in zip(_stacked([n[0] for n in named], *room), named, strict=True):
            if x != point and (abs(x - point) > 14 or abs(y - wanted) > 4):
                parts.append(
                    f'<path class="lead" d="M{x + (3 if kind else -3):.1f} {y:.1f}L{point:.1f} {wanted:.1f}"/>'
                )
            width = (0.62 if x == point else 0.4) * (right - left)
            parts.append(_text(x, y + 3.8, _fit(name, width), "soft" if x == point else kind, name))
    return parts


def _apart(xs: Sequence[float], ys: Sequence[float], left: float, right: float) -> list[float]:
    """Places between `left` and `right`; points at nearly one `x` are moved apart, the highest (least `y`) first."""
    placed = list(xs)
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    while order:
        group = [order.pop(0)]
        while order and xs[order[0]] - xs[group[-1]] < CLOSE:
            group.append(order.pop(0))
        half = CLOSE * (len(group) - 1) / 2
        middle = sum(xs[i] for i in group) / len(group)
        first = max(min(middle + half, right) - 2 * half, left + CLOSE)
        for k, i in enumerate(sorted(group, key=lambda i: ys[i])):
            placed[i] = first + CLOSE * k
    return placed


def _stacked(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending places at least `LINE` apart, near the ascending ones `wanted`, and between `top` and `bottom`."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + LINE if placed else top))
    limit = bottom - 6
    for i in reversed(range(len(placed))):
        placed[i] = limit = min(placed[i], limit)
        limit -= LINE
    return placed


# --- seeds -----------------------------------------------------------------------------------


def strip(metric: str, arms: Mapping[str, Sequence[float | None]], seeds: Sequence[Any], width: int = 400) -> Markup:
    """One metric of every arm: a dot per seed, an upright at the mean of those that have one.

    Where the values span a factor of `LOG` or more the axis is logarithmic, and the mean geometric.
    """
    columns = {arm: [number(v) for v in values] for arm, values in arms.items()}
    known = [v for values in columns.values() for v in values if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    log = low > 0 and high >= LOG * low
    factor = ""
    if log:
        ticks = _decades(low, high)
    else:
        span = _around(low, high, 4)
        low, high = span[0], span[-1]
        names, factor = _names(span)
        ticks = list(zip(span, names, strict=True))
    gutter = min(0.36 * width, 12 + CHARACTER * max(map(len, (*arms, factor))))
    if not log:
        widest = max(len(name) for _, name in ticks) * CHARACTER + 8
        if widest * len(ticks) > width - gutter:  # names that would run together
            ticks = [ticks[0], ticks[-1]]
    at = _scale(low, high, gutter + 12, width - 18, log)
    bottom = 6 + 20 * len(arms)
    parts = [_line(at(v), 4, at(v), bottom, "grid") for v, _ in ticks]
    parts += [_line(gutter + 2, bottom, width - 8, bottom, "axis"), *_bottom(ticks, at, bottom)]
    if factor:
        parts.append(_text(gutter - 4, bottom + 15, factor, "tick end"))
    told = []
    for row, (arm, values) in enumerate(columns.items()):
        y = 15 + 20 * row
        have = [v for v in values if math.isfinite(v)]
        mean = math.exp(_mean([math.log(v) for v in have])) if log else _mean(have)
        parts.append(_text(gutter - 4, y + 3.8, _fit(arm, gutter - 6), "end", arm))
        for seed, v in zip(seeds, values, strict=False):
            if math.isfinite(v):
                dot = f'<circle class="seed" cx="{at(v):.1f}" cy="{y}" r="3.6"><title>'
                parts.append(f"{dot}{html.escape(f'{arm}, seed {seed}: {v:.4g}')}</title></circle>")
        if have:
            middle = at(mean)
            parts.append(_line(middle, y - 7, middle, y + 7, "mean"))
        if missing := len(values) - len(have):
            note = f"no value in {missing} of {len(values)} seeds"
            place = (gutter + 12, "soft") if not have else (width - 8, "soft end")
            parts.append(_text(place[0], y + 3.8, note if not have else f"{missing} none", place[1]))
        told.append(f"{arm} {mean:.3g}" if have else f"{arm} none")
    kind = "geometric means" if log else "means"
    return _root(width, bottom + 20, f"{metric}, {kind} over {len(seeds)} seeds: {'; '.join(told)}", parts)


# --- axes ------------------------------------------------------------------------------------


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """A value's place between `start` and `end`; both ends alike puts it in the middle."""
    if log:
        plain = _scale(math.log(low), math.log(high), start, end)
        return lambda v: plain(math.log(v))
    if high <= low:
        return lambda v: (start + end) / 2
    return lambda v: start + (end - start) * (v - low) / (high - low)


TINY = 1e-300  # below it numbers lose their digits


def _around(low: float, high: float, count: int) -> list[float]:
    """About `count` steps of 1, 2 or 5 times a power of ten, from at or below `low` to at or above `high`."""
    if high - low <= max(1e-12 * max(abs(low), abs(high)), TINY):
        wide = max(abs(low), abs(high)) / 5 if max(abs(low), abs(high)) > TINY else 1.0
        low, high = low - wide / 2, high + wide / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, last + 1)]


def _names(ticks: Sequence[float]) -> tuple[list[str], str]:
    """Ticks in the decimals of their step, and the power of ten left out of them where they are tiny or huge."""
    largest = max((abs(v) for v in ticks), default=0.0)
    power = math.floor(math.log10(largest) + 1e-9) if largest else 0
    power = 0 if -3 <= power < 5 else power
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest or 1.0) / 10.0**power
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    names = [words.minus(f"{v / 10.0**power:,.{places}f}") if v else "0" for v in ticks]
    return names, f"×{words.ten(power)}" if power else ""


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between two values, thinned; where there are fewer than two, 1, 2 and 5 times them."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    powers = range(first, last + 1)
    inside = [p for p in powers if low <= 10.0**p * (1 + 1e-9) and 10.0**p <= high * (1 + 1e-9)]
    if len(inside) >= 2:
        kept = inside[:: math.ceil(len(inside) / 6)]
        return [(10.0**p, f"{10.0**p:g}" if -3 < p < 4 else words.ten(p)) for p in kept]
    finer = [f * 10.0**p for p in powers for f in (1, 2, 5)]
    return [(v, f"{v:g}") for v in finer if low <= v <= high] or [(low, f"{low:.3g}"), (high, f"{high:.3g}")]


# --- small things ----------------------------------------------------------------------------


def number(value: Any) -> float:
    """`value` as a float; NaN for what is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _ends(interval: Any) -> list[float]:
    """Both ends of an interval, or nothing."""
    ends = [number(v) for v in interval or ()]
    return ends if len(ends) == 2 and all(map(math.isfinite, ends)) else []


def _shown(x: float, y: float, log: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _fit(text: str, width: float) -> str:
    """Text cut to about `width` px."""
    most = max(3, int(width / CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, title: str = "") -> str:
    more = f"<title>{html.escape(title)}</title>" if title and title != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}{more}</text>'


def _root(width: float, height: float, label: str, parts: Sequence[str], kind: str = "chart") -> Markup:
    size = f'viewBox="0 0 {width:g} {height:g}"' + (f' width="{width:g}" height="{height:g}"' if kind == "row" else "")
    head = f'<svg class="{kind}" role="img" aria-label="{html.escape(label)}" {size}>'
    return Markup(head + "".join(parts) + "</svg>")
