"""Plots of a run and a claim: curves, and small plots in a row of a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from didact.report import svg, words

MAX_POINTS = 400  # per line; longer lines are averaged
FEW = 12  # up to this many points, each has a marker and a whisker; lines with more have a band
SERIES = 6  # line styles in the style sheet
ONE_SIDED = ("difference", "bound")  # kinds of test that hold on one side of their null


@dataclass(frozen=True)
class Line:
    """One line of a chart; a value that is not finite leaves a gap. `low` and `high` are empty or as long as `y`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def of_rows(rows: Sequence[Mapping[str, Any]], y: str, x: str = "step") -> Line:
    """Column `y` of `rows` against column `x`; anything but a number becomes NaN."""
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
    """Lines with their intervals on labelled axes, each named at its right end; `levels` are horizontal lines.

    `log` makes x logarithmic; `label` starts the text alternative for screen readers.
    """
    references = {name: v for name, v in (levels or {}).items() if math.isfinite(v)}
    summary = "; ".join(
        [_summary(line, xlabel or "x") for line in lines] + [f"{k} is {v:.3g}" for k, v in references.items()]
    )
    group = max((math.ceil(len(line.x) / MAX_POINTS) for line in lines), default=1)
    lines = [_averaged(line, group) for line in lines]
    xs = [a for line in lines for a, b in zip(line.x, line.y, strict=True) if svg.drawable(a, b, log)]
    ys = [v for line in lines for column in (line.y, line.low, line.high) for v in column if math.isfinite(v)]
    if not xs or not ys:
        return svg.root(
            width, 40, f"{label}: {summary}" if label else summary, [svg.text(8, 24, "no finite value", "soft")]
        )
    ys += references.values()
    yticks = svg.axis_ticks(min(ys), max(ys), 4)
    ynames, factor = svg.format_ticks(yticks)
    names = ([line.name for line in lines] if len(lines) > 1 else []) + [*references]
    label_width = min(0.36 * width, 6 + 1.08 * svg.CHARACTER * max(map(len, names))) if names else 0.0
    left, right, top = 12 + svg.CHARACTER * max(map(len, ynames)), width - 14 - label_width, 8.0
    parts = []
    if header := " ".join(filter(None, (ylabel, factor and f"({factor})"))):
        parts.append(svg.text(left - 6, top + 10, svg.fitted(header, width - left), "soft"))
        top += 20
    bottom = height - 36
    low, high = min(xs), max(xs)
    pad = 12.0 if len(xs) <= FEW * len(lines) else 3.0
    x_of = svg.scale(low, high, left + pad, right - pad, log)
    y_of = svg.scale(yticks[0], yticks[-1], bottom, top + 2)
    parts += [svg.line(left, y_of(v), right, y_of(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [svg.text(left - 7, y_of(v) + 3.8, name, "tick end") for v, name in zip(yticks, ynames, strict=True)]
    parts += [svg.line(left, y_of(v), right, y_of(v), "least") for v in references.values()]
    xticks, xfactor = _xticks(xs, x_of, log)
    parts += svg.bottom(xticks, x_of, bottom)
    means = f"means of {group}" if group > 1 else ""
    if footer := " ".join(filter(None, (xlabel, *(f"({note})" for note in (xfactor, means) if note)))):
        parts.append(svg.text((left + right) / 2, height - 5, svg.fitted(footer, right - left), "soft middle"))
    for i, line in enumerate(lines):
        shift = 5.0 * (i - (len(lines) - 1) / 2) if line.low and len(line.x) <= FEW else 0.0
        parts += _draw_line(line, i % SERIES + 1, x_of, y_of, shift, log)
    if names:
        ends = _line_ends(lines, x_of, y_of, log) if len(lines) > 1 else []
        ends += [(y_of(v), right, name, "name") for name, v in references.items()]
        parts += line_labels(ends, right, (min(top, height - svg.LINE * len(ends)), bottom + 8), label_width)
    css_class = "chart figure" if width > 480 else "chart"
    return svg.root(width, height, f"{label}: {summary}" if label else summary, parts, css_class)


def _draw_line(
    line: Line, kind: int, scale_x: Callable[[float], float], y_of: Callable[[float], float], shift: float, log: bool
) -> list[str]:
    """A line's band or whiskers, its path, and markers if its points are few; all moved right by `shift`."""

    def x_of(v: float) -> float:
        return scale_x(v) + shift

    ends = [line.low or [math.nan] * len(line.y), line.high or [math.nan] * len(line.y)]
    points = list(zip(line.x, line.y, *ends, strict=True))
    parts, path, command = [], [], "M"
    mark_points = len(points) <= FEW
    band: list[tuple[float, float, float]] = []
    for x, y, low, high in [*points, (math.nan,) * 4]:
        if not mark_points and not (svg.drawable(x, low, log) and math.isfinite(high)):
            if len(band) > 1:
                edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
                parts.append(f'<path class="area s{kind}" d="M{" ".join(f"{a:.1f} {b:.1f}" for a, b in edge)}Z"/>')
            band = []
        elif not mark_points:
            band.append((x_of(x), y_of(low), y_of(high)))
        elif svg.drawable(x, low, log) and math.isfinite(high):
            parts.append(svg.line(x_of(x), y_of(low), x_of(x), y_of(high), f"line s{kind} whole"))
        if not svg.drawable(x, y, log):
            command = "M"
            continue
        path.append(f"{command}{x_of(x):.1f} {y_of(y):.1f}")
        command = "L"
        if mark_points:
            parts.append(mark(kind, x_of(x), y_of(y)))
    return [f'<path class="line s{kind}" d="{"".join(path)}"/>', *parts]


def mark(kind: int, x: float, y: float) -> str:
    """A marker; every line style has its own shape."""
    outlines = (
        "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z", "M-3 -3H3V3H-3Z", "M0 -4L4 3H-4Z",
        "M0 -4.4L4.4 0L0 4.4L-4.4 0Z", "M0 4L4 -3H-4Z", "M-4 -1.2H-1.2V-4H1.2V-1.2H4V1.2H1.2V4H-1.2V1.2H-4Z",
    )  # fmt: skip
    return f'<path class="mark s{kind}" transform="translate({x:.1f} {y:.1f})" d="{outlines[kind - 1]}"/>'


def _line_ends(
    lines: Sequence[Line], x_of: Callable[[float], float], y_of: Callable[[float], float], log: bool
) -> list[tuple[float, float, str, str]]:
    """The last point of every line, `(y, x, name of the line, class of the name)`."""
    ends = []
    for i, line in enumerate(lines):
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if svg.drawable(x, y, log)]
        if points:
            ends.append((y_of(points[-1][1]), x_of(points[-1][0]), line.name, f"name s{i % SERIES + 1}"))
    return ends


def line_labels(
    ends: Sequence[tuple[float, float, str, str]], right: float, sides: tuple[float, float], width: float
) -> list[str]:
    """Names right of the plot, each near the end of its line, without overlap."""
    parts = []
    ordered = sorted(ends)
    for y, (line_y, x, name, kind) in zip(svg.stacked([e[0] for e in ordered], *sides), ordered, strict=True):
        if abs(y - line_y) > 3 or right - x > 16:
            parts.append(f'<path class="lead" d="M{right + 9:.1f} {y:.1f}L{x + 4:.1f} {line_y:.1f}"/>')
        parts.append(svg.text(right + 12, y + 3.8, svg.fitted(name, width), kind, name))
    return parts


def _xticks(xs: Sequence[float], x_of: Callable[[float], float], log: bool) -> tuple[list[tuple[float, str]], str]:
    """Ticks at the values themselves where they are few and their names fit, else at round numbers.

    Also returns the power of ten that their names leave out.
    """
    values = sorted(set(xs))
    labelled = [(v, words.minus(f"{v:g}")) for v in values]
    gaps = [
        x_of(b[0]) - x_of(a[0]) - svg.CHARACTER * (len(a[1]) + len(b[1])) / 2 for a, b in itertools.pairwise(labelled)
    ]
    if len(values) <= 8 and all(gap > 4 for gap in gaps):
        return labelled, ""
    if log:
        return svg.decades(values[0], values[-1]), ""
    ticks = [v for v in svg.axis_ticks(values[0], values[-1], 5) if values[0] <= v <= values[-1] * (1 + 1e-9)]
    names, factor = svg.format_ticks(ticks)
    return list(zip(ticks, names, strict=True)), factor


def _averaged(line: Line, group: int) -> Line:
    """Average every `group` consecutive values."""
    if group <= 1:
        return line
    columns = (line.x, line.y, line.low, line.high)
    return Line(line.name, *([svg.mean_of(c[i : i + group]) for i in range(0, len(c), group)] for c in columns))


def _summary(line: Line, xlabel: str) -> str:
    points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not points:
        return f"{line.name}: no finite value"
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{line.name} is {start:.3g} at {xlabel} {first:.4g}"
    return f"{line.name} goes from {start:.3g} at {xlabel} {first:.4g} to {end:.3g} at {xlabel} {last:.4g}"


# --- one row of a table ----------------------------------------------------------------------


def is_share(metric: Mapping[str, Any]) -> bool:
    """Whether a metric has no unit and all its values lie in [0, 1]: such metrics share one scale."""
    return not metric.get("unit") and all(0 <= v <= 1 for v in _finite_values(metric))


def share_axis() -> Markup:
    """The axis from 0 to 1 that these metrics share, for the header of their column."""
    x_of = svg.scale(0, 1, svg.INSET, svg.MARK - svg.INSET)
    parts = [svg.line(svg.INSET, 18, svg.MARK - svg.INSET, 18, "axis")]
    for v, name in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        parts += [svg.line(x_of(v), 14, x_of(v), 18, "axis"), svg.text(x_of(v), 10, name, "tick middle")]
    return svg.root(svg.MARK, 20, "scale from 0 to 1", parts, "row")


def change(metric: Mapping[str, Any], sides: Sequence[str] = ("before", "after")) -> Markup | str:
    """A metric: a ring before, a dot with its interval after, a vertical line for gold; empty without a value."""
    before, after, gold = (svg.number(metric.get(name)) for name in ("before", "after", "gold"))
    values = _finite_values(metric)
    if not values or not math.isfinite(after):
        return ""
    share = is_share(metric)
    low, high = (0.0, 1.0) if share else (min(values), max(values))
    x_of = svg.scale(low, high, svg.INSET, svg.MARK - svg.INSET)
    ticks = [0.0, 0.5, 1.0] if share else [v for v in svg.axis_ticks(low, high, 3) if low <= v <= high] or [low]
    parts = [svg.line(x_of(v), 2, x_of(v), 22, "grid") for v in ticks]
    parts.append(svg.line(svg.INSET, 12, svg.MARK - svg.INSET, 12, "grid"))
    if math.isfinite(before):
        parts.append(svg.line(x_of(before), 12, x_of(after), 12, "way"))
    label = f"{sides[1]} {after:.3g}"
    ends = svg.ends_of(metric.get("ci"))
    if ends:
        parts += svg.whiskers(x_of(ends[0]), x_of(ends[1]), 12)
        label += f", 95 % interval {ends[0]:.3g} to {ends[1]:.3g}"
    if math.isfinite(gold):
        parts.append(svg.line(x_of(gold), 3, x_of(gold), 21, "gold"))
        label += f", gold {gold:.3g}"
    if math.isfinite(before):
        parts.append(f'<circle class="ring" cx="{x_of(before):.1f}" cy="12" r="4.2"/>')
        label = f"{sides[0]} {before:.3g}, {label}"
    parts.append(f'<circle class="dot" cx="{x_of(after):.1f}" cy="12" r="4.2"/>')
    if not share:
        names, factor = svg.format_ticks(ticks)
        parts += svg.labels(
            [(x_of(v), name + (factor if v else "")) for v, name in zip(ticks, names, strict=True)], 34, svg.MARK
        )
    scale = f"; the scale runs from {low:.3g} to {high:.3g}"
    return svg.root(svg.MARK, 24 if share else 37, label + scale, parts, "row")


def test(row: Mapping[str, Any], width: int = 200) -> Markup | str:
    """A claim's test: estimate, interval and null, with the region shaded where it holds; each row has its own scale.

    A dashed line marks the null plus the smallest effect of interest: an interval entirely short of it fails.
    """
    null, margin, estimate = float(row["null"]), float(row.get("margin") or 0.0), svg.number(row.get("estimate"))
    if not math.isfinite(estimate):
        return ""
    ends = svg.ends_of(row.get("interval"))
    sided, sign = row["kind"] in ONE_SIDED, -1 if row["direction"] == "less" else 1
    # Draw distances from the null: next to a null of 1, a tolerance of 1e-9 would be lost to rounding.
    region = [0.0, sign * margin] if sided else [-margin, margin]
    distances = [v - null for v in (estimate, *ends)] + [0.0, *region]
    pad = 0.14 * (max(distances) - min(distances)) or 1.0
    x_of = svg.scale(min(distances) - pad, max(distances) + pad, 6, width - 6)
    edge = (x_of(0.0), 6.0 if sign < 0 else width - 6.0) if sided else (x_of(-margin), x_of(margin))
    region_left, region_width = min(edge), max(abs(edge[1] - edge[0]), 1.0)
    parts = [f'<rect class="region" x="{region_left:.1f}" y="2" width="{region_width:.1f}" height="24"/>']
    parts += [svg.line(6, 26, width - 6, 26, "axis"), svg.line(x_of(0), 2, x_of(0), 30, "null")]
    labels = [(x_of(0), words.short(null))]
    if sided and margin:
        parts.append(svg.line(x_of(sign * margin), 4, x_of(sign * margin), 26, "least"))
        labels.append((x_of(sign * margin), words.short(null + sign * margin)))
    if not sided and margin:
        labels += [(x_of(margin), f"+{words.short(margin)}"), (x_of(-margin), f"−{words.short(margin)}")]
    parts += svg.labels(labels, 40, width)
    label = f"estimate {estimate:.4g}, null {null:.4g}"
    if ends:
        parts += svg.whiskers(x_of(ends[0] - null), x_of(ends[1] - null), 14)
        label += f", interval {ends[0]:.4g} to {ends[1]:.4g}"
    parts.append(f'<rect class="dot" x="{x_of(estimate - null) - 3.8:.1f}" y="10.2" width="7.6" height="7.6"/>')
    return svg.root(width, 43, f"{row['name']}: {label}: {row['outcome']}", parts, "row")


def _finite_values(metric: Mapping[str, Any]) -> list[float]:
    values = [svg.number(metric.get(name)) for name in ("before", "after", "gold")] + svg.ends_of(metric.get("ci"))
    return [v for v in values if math.isfinite(v)]
