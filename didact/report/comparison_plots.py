"""Plots of a comparison's arms: their intervals, cost against quality, seed by seed."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from didact.report import svg, words

LOG = 50  # ratio of largest to smallest value from which a strip's axis is logarithmic


# --- a comparison ----------------------------------------------------------------------------

CLOSE = 9.0  # px; points of a scatter closer than this are moved apart


@dataclass(frozen=True)
class Point:
    """One arm of a scatter: its interval is `low` to `high` (NaN for none); a dot if `full`, else a ring."""

    name: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    full: bool = True


def span(values: Sequence[float]) -> tuple[float, float]:
    """The tightest scale with round ends that holds all finite `values`."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    ticks = svg.axis_ticks(min(finite), max(finite), 4)
    return ticks[0], ticks[-1]


def ruler(ends: tuple[float, float]) -> Markup:
    """The axis for the `interval`s of a column, drawn in its header."""
    x_of = svg.scale(*ends, svg.INSET, svg.MARK - svg.INSET)
    ticks = [v for v in svg.axis_ticks(*ends, 2) if ends[0] <= v <= ends[1]]
    names, factor = svg.format_ticks(ticks)
    parts = [
        svg.line(svg.INSET, 18, svg.MARK - svg.INSET, 18, "axis"),
        *(svg.line(x_of(v), 14, x_of(v), 18, "axis") for v in ticks),
    ]
    labels = [(x_of(v), name + (factor if v else "")) for v, name in zip(ticks, names, strict=True)]
    return svg.root(
        svg.MARK, 20, f"scale from {ends[0]:.3g} to {ends[1]:.3g}", parts + svg.labels(labels, 10, svg.MARK), "row"
    )


def interval(
    estimate: float,
    limits: Sequence[float | None] | None,
    ends: tuple[float, float],
    levels: Mapping[str, tuple[float, str]] | None = None,
    full: bool = True,
    name: str = "",
) -> Markup | str:
    """An estimate with its interval on the scale `ends`, for a row of a table; empty without an estimate.

    `levels` are vertical reference lines, `{name: (value, class)}`; the estimate is a dot if `full`, else a ring.
    """
    if not math.isfinite(estimate):
        return ""
    x_of = svg.scale(*ends, svg.INSET, svg.MARK - svg.INSET)
    parts = [svg.line(svg.INSET, 12, svg.MARK - svg.INSET, 12, "grid")]
    parts += [svg.line(x_of(v), 1, x_of(v), 23, kind) for v, kind in (levels or {}).values() if math.isfinite(v)]
    label = f"{name}: {estimate:.3g}"
    if limit_values := svg.ends_of(limits):
        parts += svg.whiskers(x_of(limit_values[0]), x_of(limit_values[1]), 12)
        label += f", 95 % interval {limit_values[0]:.3g} to {limit_values[1]:.3g}"
    parts.append(f'<circle class="{"dot" if full else "ring"}" cx="{x_of(estimate):.1f}" cy="12" r="4.2"/>')
    label += "".join(f"; {line_name} {v:.3g}" for line_name, (v, _) in (levels or {}).items())
    return svg.root(svg.MARK, 24, label, parts, "row")


def scatter(
    points: Sequence[Point],
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, tuple[float, str]] | None = None,
    limit: tuple[str, float] | None = None,
    width: int = 400,
) -> Markup:
    """Points with vertical intervals and their names beside them; x starts at 0, so that costs can be compared by eye.

    Points at nearly the same x are moved apart sideways. `levels` are horizontal reference lines,
    `{name: (value, class)}`; `limit` is a vertical line, `(name, x)`.
    """
    lines = {line_name: (v, kind) for line_name, (v, kind) in (levels or {}).items() if math.isfinite(v)}
    finite = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    label = "; ".join(
        [f"{p.name} {p.y:.3g} at {p.x:.3g}" for p in points] + [f"{k} {v:.3g}" for k, (v, _) in lines.items()]
    )
    ys = [v for p in finite for v in (p.y, p.low, p.high) if math.isfinite(v)] + [v for v, _ in lines.values()]
    if not ys:
        return svg.root(width, 40, label, [svg.text(8, 24, "no finite value", "soft")])
    yticks = svg.axis_ticks(min(ys), max(ys), 4)
    ynames, factor = svg.format_ticks(yticks)
    x_max = max([p.x for p in finite] + ([limit[1]] if limit else []), default=0.0) or 1.0
    xticks = [v for v in svg.axis_ticks(0.0, x_max, 4) if v <= x_max * (1 + 1e-9)]
    left, right, top = 12 + svg.CHARACTER * max(map(len, ynames)), width - 16.0, 32.0
    bottom = top + max(190.0, svg.LINE * (len(finite) + len(lines) + 2))
    x_of, y_of = svg.scale(0.0, 1.03 * x_max, left + 6, right), svg.scale(yticks[0], yticks[-1], bottom, top)
    parts = [svg.line(left, y_of(v), right, y_of(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [svg.text(left - 7, y_of(v) + 3.8, name, "tick end") for v, name in zip(yticks, ynames, strict=True)]
    parts += svg.bottom([(v, words.minus(f"{v:g}") if v < 1e3 else words.many(v)) for v in xticks], x_of, bottom)
    parts.append(svg.text(left - 6, 12, svg.fitted(" ".join(filter(None, (ylabel, factor))), right - left), "soft"))
    parts.append(svg.text((left + right) / 2, bottom + 31, svg.fitted(xlabel, right - left), "soft middle"))
    if limit:
        limit_x = x_of(limit[1])
        parts += [
            svg.line(limit_x, top, limit_x, bottom, "least"),
            svg.text(limit_x + 4, top - 7, limit[0], "soft end"),
        ]
    parts += [svg.line(left, y_of(v), right, y_of(v), kind) for v, kind in lines.values()]
    xs = _separated([x_of(p.x) for p in finite], [y_of(p.y) for p in finite], left, right)
    parts += _point_labels(finite, xs, y_of, {k: y_of(v) for k, (v, _) in lines.items()}, (left, right), (top, bottom))
    for p, x in zip(finite, xs, strict=True):
        if math.isfinite(p.low) and math.isfinite(p.high):
            parts.append(svg.line(x, y_of(p.low), x, y_of(p.high), "span"))
        dot = f'<circle class="{"dot" if p.full else "ring"}" cx="{x:.1f}" cy="{y_of(p.y):.1f}" r="4.4"><title>'
        parts.append(f"{dot}{html.escape(f'{p.name}: {p.y:.4g} at {p.x:.4g}')}</title></circle>")
    return svg.root(width, bottom + 36, f"{ylabel} by {xlabel}: {label}", parts, "chart broad")


def _point_labels(
    points: Sequence[Point],
    places: Sequence[float],
    y_of: Callable[[float], float],
    lines: Mapping[str, float],
    sides: tuple[float, float],
    room: tuple[float, float],
) -> list[str]:
    """Label points on their side towards the middle, with a thin leader line, and reference lines at the left.

    `sides` and `room` are the plot's edges in x and in y; labels on the same side do not overlap.
    """
    left, right = sides
    texts: dict[str, list[tuple[float, float, str, float]]] = {"end": [], "": []}  # y, x, name, point's x
    for p, x in zip(points, places, strict=True):
        neighbours = [b for b in places if abs(b - x) < len(points) * CLOSE]  # a label clears its point's neighbours
        if x > (left + right) / 2:
            texts["end"].append((y_of(p.y), min(neighbours) - 12, p.name, x))
        else:
            texts[""].append((y_of(p.y), max(neighbours) + 12, p.name, x))
    texts[""] += [(y - 8, left + 8, name, left + 8) for name, y in lines.items()]
    parts = []
    for style, labels in texts.items():
        labels.sort()
        for y, (point_y, x, name, point_x) in zip(svg.stacked([n[0] for n in labels], *room), labels, strict=True):
            if x != point_x and (abs(x - point_x) > 14 or abs(y - point_y) > 4):
                parts.append(
                    f'<path class="lead" d="M{x + (3 if style else -3):.1f} {y:.1f}L{point_x:.1f} {point_y:.1f}"/>'
                )
            width = (0.62 if x == point_x else 0.4) * (right - left)
            parts.append(svg.text(x, y + 3.8, svg.fitted(name, width), "soft" if x == point_x else style, name))
    return parts


def _separated(xs: Sequence[float], ys: Sequence[float], left: float, right: float) -> list[float]:
    """The `xs` moved apart where they are nearly equal (highest point first), kept within `left` and `right`."""
    places = list(xs)
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    while order:
        group = [order.pop(0)]
        while order and xs[order[0]] - xs[group[-1]] < CLOSE:
            group.append(order.pop(0))
        half_width = CLOSE * (len(group) - 1) / 2
        center = sum(xs[i] for i in group) / len(group)
        first = max(min(center + half_width, right) - 2 * half_width, left + CLOSE)
        for k, i in enumerate(sorted(group, key=lambda i: ys[i])):
            places[i] = first + CLOSE * k
    return places


# --- seeds -----------------------------------------------------------------------------------


def strip(metric: str, arms: Mapping[str, Sequence[float | None]], seeds: Sequence[Any], width: int = 400) -> Markup:
    """One metric of every arm: a dot per seed, and a vertical mark at the mean of the finite values.

    Where the values span a factor of `LOG` or more, the axis is logarithmic and the mean geometric.
    """
    columns = {arm: [svg.number(v) for v in values] for arm, values in arms.items()}
    finite = [v for values in columns.values() for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    log = low > 0 and high >= LOG * low
    factor = ""
    if log:
        ticks = svg.decades(low, high)
    else:
        tick_values = svg.axis_ticks(low, high, 4)
        low, high = tick_values[0], tick_values[-1]
        names, factor = svg.format_ticks(tick_values)
        ticks = list(zip(tick_values, names, strict=True))
    gutter = min(0.36 * width, 12 + svg.CHARACTER * max(map(len, (*arms, factor))))
    if not log:
        widest = max(len(name) for _, name in ticks) * svg.CHARACTER + 8
        if widest * len(ticks) > width - gutter:  # names would overlap
            ticks = [ticks[0], ticks[-1]]
    x_of = svg.scale(low, high, gutter + 12, width - 18, log)
    bottom = 6 + 20 * len(arms)
    parts = [svg.line(x_of(v), 4, x_of(v), bottom, "grid") for v, _ in ticks]
    parts += [svg.line(gutter + 2, bottom, width - 8, bottom, "axis"), *svg.bottom(ticks, x_of, bottom)]
    if factor:
        parts.append(svg.text(gutter - 4, bottom + 15, factor, "tick end"))
    summary = []
    for i, (arm, values) in enumerate(columns.items()):
        y = 15 + 20 * i
        present = [v for v in values if math.isfinite(v)]
        mean = math.exp(svg.mean_of([math.log(v) for v in present])) if log else svg.mean_of(present)
        parts.append(svg.text(gutter - 4, y + 3.8, svg.fitted(arm, gutter - 6), "end", arm))
        for seed, v in zip(seeds, values, strict=False):
            if math.isfinite(v):
                dot = f'<circle class="seed" cx="{x_of(v):.1f}" cy="{y}" r="3.6"><title>'
                parts.append(f"{dot}{html.escape(f'{arm}, seed {seed}: {v:.4g}')}</title></circle>")
        if present:
            mean_x = x_of(mean)
            parts.append(svg.line(mean_x, y - 7, mean_x, y + 7, "mean"))
        if missing := len(values) - len(present):
            note = f"no value in {missing} of {len(values)} seeds"
            position = (gutter + 12, "soft") if not present else (width - 8, "soft end")
            parts.append(svg.text(position[0], y + 3.8, note if not present else f"{missing} none", position[1]))
        summary.append(f"{arm} {mean:.3g}" if present else f"{arm} none")
    mean_name = "geometric means" if log else "means"
    return svg.root(width, bottom + 20, f"{metric}, {mean_name} over {len(seeds)} seeds: {'; '.join(summary)}", parts)
