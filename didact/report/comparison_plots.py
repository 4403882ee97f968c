"""Plots of a comparison's arms: their intervals, cost against quality, seed by seed."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from didact.report import svg, words

LOG = 50  # times the smallest must be the largest before a strip's axis is logarithmic


# --- a comparison ----------------------------------------------------------------------------

CLOSE = 9.0  # px between points of a scatter below which they are moved apart


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
    ticks = svg.around(min(known), max(known), 4)
    return ticks[0], ticks[-1]


def ruler(ends: tuple[float, float]) -> Markup:
    """The scale of `interval`s, for the head of their column."""
    at = svg.scale(*ends, svg.INSET, svg.MARK - svg.INSET)
    ticks = [v for v in svg.around(*ends, 2) if ends[0] <= v <= ends[1]]
    names, factor = svg.named(ticks)
    parts = [
        svg.line(svg.INSET, 18, svg.MARK - svg.INSET, 18, "axis"),
        *(svg.line(at(v), 14, at(v), 18, "axis") for v in ticks),
    ]
    named = [(at(v), name + (factor if v else "")) for v, name in zip(ticks, names, strict=True)]
    return svg.root(
        svg.MARK, 20, f"scale from {ends[0]:.3g} to {ends[1]:.3g}", parts + svg.labels(named, 10, svg.MARK), "row"
    )


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
    at = svg.scale(*ends, svg.INSET, svg.MARK - svg.INSET)
    parts = [svg.line(svg.INSET, 12, svg.MARK - svg.INSET, 12, "grid")]
    parts += [svg.line(at(v), 1, at(v), 23, kind) for v, kind in (levels or {}).values() if math.isfinite(v)]
    told = f"{name}: {estimate:.3g}"
    if known := svg.ends_of(limits):
        parts += svg.whiskers(at(known[0]), at(known[1]), 12)
        told += f", 95 % interval {known[0]:.3g} to {known[1]:.3g}"
    parts.append(f'<circle class="{"dot" if full else "ring"}" cx="{at(estimate):.1f}" cy="12" r="4.2"/>')
    told += "".join(f"; {what} {v:.3g}" for what, (v, _) in (levels or {}).items())
    return svg.root(svg.MARK, 24, told, parts, "row")


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
        return svg.root(width, 40, told, [svg.text(8, 24, "no finite value", "soft")])
    yticks = svg.around(min(ys), max(ys), 4)
    ynames, factor = svg.named(yticks)
    most = max([p.x for p in known] + ([limit[1]] if limit else []), default=0.0) or 1.0
    xticks = [v for v in svg.around(0.0, most, 4) if v <= most * (1 + 1e-9)]
    left, right, top = 12 + svg.CHARACTER * max(map(len, ynames)), width - 16.0, 32.0
    bottom = top + max(190.0, svg.LINE * (len(known) + len(lines) + 2))
    across, up = svg.scale(0.0, 1.03 * most, left + 6, right), svg.scale(yticks[0], yticks[-1], bottom, top)
    parts = [svg.line(left, up(v), right, up(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [svg.text(left - 7, up(v) + 3.8, name, "tick end") for v, name in zip(yticks, ynames, strict=True)]
    parts += svg.bottom([(v, words.minus(f"{v:g}") if v < 1e3 else words.many(v)) for v in xticks], across, bottom)
    parts.append(svg.text(left - 6, 12, svg.fitted(" ".join(filter(None, (ylabel, factor))), right - left), "soft"))
    parts.append(svg.text((left + right) / 2, bottom + 31, svg.fitted(xlabel, right - left), "soft middle"))
    if limit:
        at = across(limit[1])
        parts += [svg.line(at, top, at, bottom, "least"), svg.text(at + 4, top - 7, limit[0], "soft end")]
    parts += [svg.line(left, up(v), right, up(v), kind) for v, kind in lines.values()]
    places = _apart([across(p.x) for p in known], [up(p.y) for p in known], left, right)
    parts += _names_beside(known, places, up, {k: up(v) for k, (v, _) in lines.items()}, (left, right), (top, bottom))
    for p, x in zip(known, places, strict=True):
        if math.isfinite(p.low) and math.isfinite(p.high):
            parts.append(svg.line(x, up(p.low), x, up(p.high), "span"))
        dot = f'<circle class="{"dot" if p.full else "ring"}" cx="{x:.1f}" cy="{up(p.y):.1f}" r="4.4"><title>'
        parts.append(f"{dot}{html.escape(f'{p.name}: {p.y:.4g} at {p.x:.4g}')}</title></circle>")
    return svg.root(width, bottom + 36, f"{ylabel} by {xlabel}: {told}", parts, "chart broad")


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
        for y, (wanted, x, name, point) in zip(svg.stacked([n[0] for n in named], *room), named, strict=True):
            if x != point and (abs(x - point) > 14 or abs(y - wanted) > 4):
                parts.append(
                    f'<path class="lead" d="M{x + (3 if kind else -3):.1f} {y:.1f}L{point:.1f} {wanted:.1f}"/>'
                )
            width = (0.62 if x == point else 0.4) * (right - left)
            parts.append(svg.text(x, y + 3.8, svg.fitted(name, width), "soft" if x == point else kind, name))
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


# --- seeds -----------------------------------------------------------------------------------


def strip(metric: str, arms: Mapping[str, Sequence[float | None]], seeds: Sequence[Any], width: int = 400) -> Markup:
    """One metric of every arm: a dot per seed, an upright at the mean of those that have one.

    Where the values span a factor of `LOG` or more the axis is logarithmic, and the mean geometric.
    """
    columns = {arm: [svg.number(v) for v in values] for arm, values in arms.items()}
    known = [v for values in columns.values() for v in values if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    log = low > 0 and high >= LOG * low
    factor = ""
    if log:
        ticks = svg.decades(low, high)
    else:
        span = svg.around(low, high, 4)
        low, high = span[0], span[-1]
        names, factor = svg.named(span)
        ticks = list(zip(span, names, strict=True))
    gutter = min(0.36 * width, 12 + svg.CHARACTER * max(map(len, (*arms, factor))))
    if not log:
        widest = max(len(name) for _, name in ticks) * svg.CHARACTER + 8
        if widest * len(ticks) > width - gutter:  # names that would run together
            ticks = [ticks[0], ticks[-1]]
    at = svg.scale(low, high, gutter + 12, width - 18, log)
    bottom = 6 + 20 * len(arms)
    parts = [svg.line(at(v), 4, at(v), bottom, "grid") for v, _ in ticks]
    parts += [svg.line(gutter + 2, bottom, width - 8, bottom, "axis"), *svg.bottom(ticks, at, bottom)]
    if factor:
        parts.append(svg.text(gutter - 4, bottom + 15, factor, "tick end"))
    told = []
    for row, (arm, values) in enumerate(columns.items()):
        y = 15 + 20 * row
        have = [v for v in values if math.isfinite(v)]
        mean = math.exp(svg.mean_of([math.log(v) for v in have])) if log else svg.mean_of(have)
        parts.append(svg.text(gutter - 4, y + 3.8, svg.fitted(arm, gutter - 6), "end", arm))
        for seed, v in zip(seeds, values, strict=False):
            if math.isfinite(v):
                dot = f'<circle class="seed" cx="{at(v):.1f}" cy="{y}" r="3.6"><title>'
                parts.append(f"{dot}{html.escape(f'{arm}, seed {seed}: {v:.4g}')}</title></circle>")
        if have:
            middle = at(mean)
            parts.append(svg.line(middle, y - 7, middle, y + 7, "mean"))
        if missing := len(values) - len(have):
            note = f"no value in {missing} of {len(values)} seeds"
            place = (gutter + 12, "soft") if not have else (width - 8, "soft end")
            parts.append(svg.text(place[0], y + 3.8, note if not have else f"{missing} none", place[1]))
        told.append(f"{arm} {mean:.3g}" if have else f"{arm} none")
    kind = "geometric means" if log else "means"
    return svg.root(width, bottom + 20, f"{metric}, {kind} over {len(seeds)} seeds: {'; '.join(told)}", parts)
