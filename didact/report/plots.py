"""Plots of a run and a claim: curves, and marks in a row of a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from didact.report import svg, words

POINTS = 400  # of a line at most; more are averaged
FEW = 12  # points up to which each is marked, its interval a whisker and not part of a band
SERIES = 6  # kinds of line the page's style sheet knows
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
    return Line(y, [svg.number(row.get(x)) for row in rows], [svg.number(row.get(y)) for row in rows])


# --- curves ----------------------------------------------------------------------------------


def chart(
    lines: Sequence[Line],
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
    label: str = "",
    levels: Mapping[str, float] | None = None,
    width: int = 380,
    height: int = 210,
) -> Markup:
    """Lines with their intervals on labelled axes, each named at its right end; `levels` are named lines across.

    `log` spaces x logarithmically, `label` begins what is read out.
    """
    floors = {name: v for name, v in (levels or {}).items() if math.isfinite(v)}
    told = "; ".join([_told(line, xlabel or "x") for line in lines] + [f"{k} is {v:.3g}" for k, v in floors.items()])
    run = max((math.ceil(len(line.x) / POINTS) for line in lines), default=1)
    lines = [_thinned(line, run) for line in lines]
    xs = [a for line in lines for a, b in zip(line.x, line.y, strict=True) if svg.drawable(a, b, log)]
    ys = [v for line in lines for column in (line.y, line.low, line.high) for v in column if math.isfinite(v)]
    if not xs or not ys:
        return svg.root(width, 40, f"{label}: {told}" if label else told, [svg.text(8, 24, "no finite value", "soft")])
    ys += floors.values()
    yticks = svg.around(min(ys), max(ys), 4)
    ynames, factor = svg.named(yticks)
    names = ([line.name for line in lines] if len(lines) > 1 else []) + [*floors]
    room = min(0.36 * width, 6 + 1.08 * svg.CHARACTER * max(map(len, names))) if names else 0.0
    left, right, top = 12 + svg.CHARACTER * max(map(len, ynames)), width - 14 - room, 8.0
    parts = []
    if head := " ".join(filter(None, (ylabel, factor and f"({factor})"))):
        parts.append(svg.text(left - 6, top + 10, svg.fitted(head, width - left), "soft"))
        top += 20
    bottom = height - 36
    low, high = min(xs), max(xs)
    pad = 12.0 if len(xs) <= FEW * len(lines) else 3.0
    across = svg.scale(low, high, left + pad, right - pad, log)
    up = svg.scale(yticks[0], yticks[-1], bottom, top + 2)
    parts += [svg.line(left, up(v), right, up(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [svg.text(left - 7, up(v) + 3.8, name, "tick end") for v, name in zip(yticks, ynames, strict=True)]
    parts += [svg.line(left, up(v), right, up(v), "least") for v in floors.values()]
    xticks, xfactor = _xticks(xs, across, log)
    parts += svg.bottom(xticks, across, bottom)
    means = f"means of {run}" if run > 1 else ""
    if below := " ".join(filter(None, (xlabel, *(f"({more})" for more in (xfactor, means) if more)))):
        parts.append(svg.text((left + right) / 2, height - 5, svg.fitted(below, right - left), "soft middle"))
    for place, line in enumerate(lines):
        apart = 5.0 * (place - (len(lines) - 1) / 2) if line.low and len(line.x) <= FEW else 0.0
        parts += _drawn(line, place % SERIES + 1, across, up, apart, log)
    if names:
        ends = _ends(lines, across, up, log) if len(lines) > 1 else []
        ends += [(up(v), right, name, "name") for name, v in floors.items()]
        parts += named(ends, right, (min(top, height - svg.LINE * len(ends)), bottom + 8), room)
    kind = "chart figure" if width > 480 else "chart"
    return svg.root(width, height, f"{label}: {told}" if label else told, parts, kind)


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
        if not few and not (svg.drawable(x, low, log) and math.isfinite(high)):
            if len(band) > 1:
                edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
                parts.append(f'<path class="area s{kind}" d="M{" ".join(f"{a:.1f} {b:.1f}" for a, b in edge)}Z"/>')
            band = []
        elif not few:
            band.append((across(x), up(low), up(high)))
        elif svg.drawable(x, low, log) and math.isfinite(high):
            parts.append(svg.line(across(x), up(low), across(x), up(high), f"line s{kind} whole"))
        if not svg.drawable(x, y, log):
            pen = "M"
            continue
        path.append(f"{pen}{across(x):.1f} {up(y):.1f}")
        pen = "L"
        if few:
            parts.append(mark(kind, across(x), up(y)))
    return [f'<path class="line s{kind}" d="{"".join(path)}"/>', *parts]


def mark(kind: int, x: float, y: float) -> str:
    """A point; each kind of line has a shape of its own."""
    shapes = (
        "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z", "M-3 -3H3V3H-3Z", "M0 -4L4 3H-4Z",
        "M0 -4.4L4.4 0L0 4.4L-4.4 0Z", "M0 4L4 -3H-4Z", "M-4 -1.2H-1.2V-4H1.2V-1.2H4V1.2H1.2V4H-1.2V1.2H-4Z",
    )  # fmt: skip
    return f'<path class="mark s{kind}" transform="translate({x:.1f} {y:.1f})" d="{shapes[kind - 1]}"/>'


def _ends(
    lines: Sequence[Line], across: Callable[[float], float], up: Callable[[float], float], log: bool
) -> list[tuple[float, float, str, str]]:
    """The last point of every line, `(y, x, its name, class of the name)`."""
    found = []
    for place, line in enumerate(lines):
        known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if svg.drawable(x, y, log)]
        if known:
            found.append((up(known[-1][1]), across(known[-1][0]), line.name, f"name s{place % SERIES + 1}"))
    return found


def named(
    ends: Sequence[tuple[float, float, str, str]], right: float, sides: tuple[float, float], room: float
) -> list[str]:
    """Names right of the plot, each beside the end of its line, apart from each other."""
    parts = []
    ordered = sorted(ends)
    for y, (wanted, x, name, kind) in zip(svg.stacked([e[0] for e in ordered], *sides), ordered, strict=True):
        if abs(y - wanted) > 3 or right - x > 16:
            parts.append(f'<path class="lead" d="M{right + 9:.1f} {y:.1f}L{x + 4:.1f} {wanted:.1f}"/>')
        parts.append(svg.text(right + 12, y + 3.8, svg.fitted(name, room), kind, name))
    return parts


def _xticks(xs: Sequence[float], across: Callable[[float], float], log: bool) -> tuple[list[tuple[float, str]], str]:
    """Ticks at the values themselves where they are few and their names have room, else at round numbers.

    And the power of ten that their names leave out.
    """
    at = sorted(set(xs))
    named = [(v, words.minus(f"{v:g}")) for v in at]
    room = [
        across(b[0]) - across(a[0]) - svg.CHARACTER * (len(a[1]) + len(b[1])) / 2 for a, b in itertools.pairwise(named)
    ]
    if len(at) <= 8 and all(gap > 4 for gap in room):
        return named, ""
    if log:
        return svg.decades(at[0], at[-1]), ""
    ticks = [v for v in svg.around(at[0], at[-1], 5) if at[0] <= v <= at[-1] * (1 + 1e-9)]
    names, factor = svg.named(ticks)
    return list(zip(ticks, names, strict=True)), factor


def _thinned(line: Line, run: int) -> Line:
    """Means of `run` values each."""
    if run <= 1:
        return line
    columns = (line.x, line.y, line.low, line.high)
    return Line(line.name, *([svg.mean_of(c[i : i + run]) for i in range(0, len(c), run)] for c in columns))


def _told(line: Line, x: str) -> str:
    known = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not known:
        return f"{line.name}: no finite value"
    (first, start), (last, end) = known[0], known[-1]
    if len(known) == 1:
        return f"{line.name} is {start:.3g} at {x} {first:.4g}"
    return f"{line.name} goes from {start:.3g} at {x} {first:.4g} to {end:.3g} at {x} {last:.4g}"


# --- one row of a table ----------------------------------------------------------------------


def is_share(metric: Mapping[str, Any]) -> bool:
    """Whether all of a metric lies between 0 and 1, and it has no unit: such metrics have one scale."""
    return not metric.get("unit") and all(0 <= v <= 1 for v in _known(metric))


def share_axis() -> Markup:
    """The scale of those metrics, for the head of their column."""
    at = svg.scale(0, 1, svg.INSET, svg.MARK - svg.INSET)
    parts = [svg.line(svg.INSET, 18, svg.MARK - svg.INSET, 18, "axis")]
    for v, name in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        parts += [svg.line(at(v), 14, at(v), 18, "axis"), svg.text(at(v), 10, name, "tick middle")]
    return svg.root(svg.MARK, 20, "scale from 0 to 1", parts, "row")


def change(metric: Mapping[str, Any], sides: Sequence[str] = ("before", "after")) -> Markup | str:
    """A metric: a ring before, a dot with its interval after, an upright for gold. Without a value, nothing."""
    before, after, gold = (svg.number(metric.get(name)) for name in ("before", "after", "gold"))
    known = _known(metric)
    if not known or not math.isfinite(after):
        return ""
    share = is_share(metric)
    low, high = (0.0, 1.0) if share else (min(known), max(known))
    at = svg.scale(low, high, svg.INSET, svg.MARK - svg.INSET)
    ticks = [0.0, 0.5, 1.0] if share else [v for v in svg.around(low, high, 3) if low <= v <= high] or [low]
    parts = [svg.line(at(v), 2, at(v), 22, "grid") for v in ticks]
    parts.append(svg.line(svg.INSET, 12, svg.MARK - svg.INSET, 12, "grid"))
    if math.isfinite(before):
        parts.append(svg.line(at(before), 12, at(after), 12, "way"))
    told = f"{sides[1]} {after:.3g}"
    ends = svg.ends_of(metric.get("ci"))
    if ends:
        parts += svg.whiskers(at(ends[0]), at(ends[1]), 12)
        told += f", 95 % interval {ends[0]:.3g} to {ends[1]:.3g}"
    if math.isfinite(gold):
        parts.append(svg.line(at(gold), 3, at(gold), 21, "gold"))
        told += f", gold {gold:.3g}"
    if math.isfinite(before):
        parts.append(f'<circle class="ring" cx="{at(before):.1f}" cy="12" r="4.2"/>')
        told = f"{sides[0]} {before:.3g}, {told}"
    parts.append(f'<circle class="dot" cx="{at(after):.1f}" cy="12" r="4.2"/>')
    if not share:
        names, factor = svg.named(ticks)
        parts += svg.labels(
            [(at(v), name + (factor if v else "")) for v, name in zip(ticks, names, strict=True)], 34, svg.MARK
        )
    scale = f"; the scale runs from {low:.3g} to {high:.3g}"
    return svg.root(svg.MARK, 24 if share else 37, told + scale, parts, "row")


def test(row: Mapping[str, Any], width: int = 200) -> Markup | str:
    """A claim's test: estimate and interval, its null, and shaded where it holds. Every row has its own scale.

    Dashes mark the null plus the smallest effect of interest: an interval wholly short of it fails.
    """
    null, margin, estimate = float(row["null"]), float(row.get("margin") or 0.0), svg.number(row.get("estimate"))
    if not math.isfinite(estimate):
        return ""
    ends = svg.ends_of(row.get("interval"))
    sided, sign = row["kind"] in SIDED, -1 if row["direction"] == "less" else 1
    # Everything is drawn as a distance from the null: tolerances of 1e-9 are lost beside a null of 1.
    region = [0.0, sign * margin] if sided else [-margin, margin]
    reach = [v - null for v in (estimate, *ends)] + [0.0, *region]
    pad = 0.14 * (max(reach) - min(reach)) or 1.0
    at = svg.scale(min(reach) - pad, max(reach) + pad, 6, width - 6)
    edge = (at(0.0), 6.0 if sign < 0 else width - 6.0) if sided else (at(-margin), at(margin))
    left, wide = min(edge), max(abs(edge[1] - edge[0]), 1.0)
    parts = [f'<rect class="region" x="{left:.1f}" y="2" width="{wide:.1f}" height="24"/>']
    parts += [svg.line(6, 26, width - 6, 26, "axis"), svg.line(at(0), 2, at(0), 30, "null")]
    labels = [(at(0), words.short(null))]
    if sided and margin:
        parts.append(svg.line(at(sign * margin), 4, at(sign * margin), 26, "least"))
        labels.append((at(sign * margin), words.short(null + sign * margin)))
    if not sided and margin:
        labels += [(at(margin), f"+{words.short(margin)}"), (at(-margin), f"−{words.short(margin)}")]
    parts += svg.labels(labels, 40, width)
    told = f"estimate {estimate:.4g}, null {null:.4g}"
    if ends:
        parts += svg.whiskers(at(ends[0] - null), at(ends[1] - null), 14)
        told += f", interval {ends[0]:.4g} to {ends[1]:.4g}"
    parts.append(f'<rect class="dot" x="{at(estimate - null) - 3.8:.1f}" y="10.2" width="7.6" height="7.6"/>')
    return svg.root(width, 43, f"{row['name']}: {told}: {row['outcome']}", parts, "row")


def _known(metric: Mapping[str, Any]) -> list[float]:
    values = [svg.number(metric.get(name)) for name in ("before", "after", "gold")] + svg.ends_of(metric.get("ci"))
    return [v for v in values if math.isfinite(v)]
