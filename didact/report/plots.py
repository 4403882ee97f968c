"""SVG for pages: inline, coloured by the page's own style sheet (so light and dark), with a title read aloud.

Curves are matplotlib's; the small marks beside a table's rows are written here by hand.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

POINTS = 400  # of a curve at most; more are averaged
INK, FAINT = "#010203", "#010204"  # stand-ins that become the page's colours
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")

Rows = Sequence[Mapping[str, Any]]


def curve(rows: Rows, y: Sequence[str], x: str = "step", title: str = "") -> str:
    """Columns `y` of `rows` against column `x`; values that are missing or not finite leave a gap."""
    with _style():
        figure, axes = _figure()
        told = []
        for name, colour in zip(y, SERIES, strict=False):
            xs, ys = _points(rows, x, name)
            axes.plot(xs, ys, color=colour, linewidth=1.4, label=name, marker="o" if len(xs) == 1 else None)
            told.append(_told(name, xs, ys, x))
        if len(y) > 1:
            axes.legend(frameon=False, labelcolor=INK, handlelength=1.2, loc="best")
        axes.set_xlabel(x)
        return _svg(figure, f"{title}: {'; '.join(told)}" if title else "; ".join(told))


def change(metric: Mapping[str, Any], width: int = 150) -> str:
    """One metric as a mark: a ring before, a dot with its interval after; from 0 to 1 where all of it lies there."""
    known = (metric.get("before"), metric.get("after"), metric.get("gold"), *(metric.get("ci") or ()))
    ends = [v for v in known if _finite(v)]
    if not ends or not _finite(metric.get("after")):
        return ""
    low, high = min(0.0, *ends), max(0.0, *ends)
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)

    def at(v: float) -> float:
        return 8 + (width - 16) * (v - low) / (high - low)

    before, after = metric.get("before"), metric["after"]
    parts = [f'<line class="axis" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="11" y2="11"/>']
    told = f"after {after:.3g}"
    ci = metric.get("ci")
    if ci and all(_finite(v) for v in ci):
        parts.append(f'<line class="span" x1="{at(ci[0]):.1f}" x2="{at(ci[1]):.1f}" y1="11" y2="11"/>')
        told += f", interval {ci[0]:.3g} to {ci[1]:.3g}"
    if _finite(metric.get("gold")):
        tick = at(float(metric["gold"]))
        parts.append(f'<line class="gold" x1="{tick:.1f}" x2="{tick:.1f}" y1="3" y2="19"/>')
        told += f", gold {metric['gold']:.3g}"
    if _finite(before):
        parts.append(f'<circle class="ring" cx="{at(float(before or 0)):.1f}" cy="11" r="4"/>')
        told = f"before {before:.3g}, {told}"
    parts.append(f'<circle class="dot" cx="{at(after):.1f}" cy="11" r="4"/>')
    return _mark(width, 22, f"{told}; the line runs from {low:.3g} to {high:.3g}", parts)


def forest_row(test: Mapping[str, Any], width: int = 180) -> str:
    """One row of a forest plot: estimate and interval of a test, its null on the middle line.

    Where the test has a side, right of the line is where the claim lies. Dashes mark the smallest effect of
    interest, a band the width of an equivalence or of a tolerance. Every row has its own scale.
    """
    sign = -1 if test["direction"] == "less" and test["kind"] in ("difference", "bound") else 1
    null, margin, estimate = test["null"], test["margin"] or 0.0, test["estimate"]
    interval = [v for v in test["interval"] or () if _finite(v)]
    if not _finite(estimate):
        return ""
    away = [sign * (v - null) for v in (estimate, *interval)]
    reach = max(*(abs(v) for v in away), margin * (1.4 if test["kind"] in ("equivalence", "exact") else 1)) or 1.0
    middle = width / 2

    def at(v: float) -> float:
        return middle + (middle - 10) * v / reach

    parts = []
    if margin and test["kind"] in ("equivalence", "exact"):
        parts.append(
            f'<rect class="band" x="{at(-margin):.1f}" y="2" width="{at(margin) - at(-margin):.1f}" height="20"/>'
        )
    parts.append(f'<line class="null" x1="{middle}" x2="{middle}" y1="0" y2="24"/>')
    if margin and test["kind"] in ("difference", "bound"):
        parts.append(f'<line class="least" x1="{at(margin):.1f}" x2="{at(margin):.1f}" y1="3" y2="21"/>')
    told = f"estimate {estimate:.4g}, null {null:.4g}"
    if len(interval) == 2:
        left, right = sorted(at(v) for v in away[1:])
        parts.append(f'<line class="span" x1="{left:.1f}" x2="{right:.1f}" y1="12" y2="12"/>')
        parts += [f'<line class="end" x1="{v:.1f}" x2="{v:.1f}" y1="8" y2="16"/>' for v in (left, right)]
        told += f", interval {interval[0]:.4g} to {interval[1]:.4g}"
    parts.append(f'<rect class="dot" x="{at(away[0]) - 3.5:.1f}" y="8.5" width="7" height="7"/>')
    return _mark(width, 24, f"{test['name']}: {told}: {test['outcome']}", parts)


def _points(rows: Rows, x: str, y: str) -> tuple[list[float], list[float]]:
    """The column as floats, NaN where there is none; long ones as means of equal runs."""
    xs = [_number(row.get(x)) for row in rows]
    ys = [_number(row.get(y)) for row in rows]
    run = math.ceil(len(xs) / POINTS)
    if run <= 1:
        return xs, ys
    return [_mean(xs[i : i + run]) for i in range(0, len(xs), run)], [
        _mean(ys[i : i + run]) for i in range(0, len(ys), run)
    ]


def _told(name: str, xs: Sequence[float], ys: Sequence[float], x: str) -> str:
    known = [(a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not known:
        return f"{name}: no finite value"
    (first, start), (last, end) = known[0], known[-1]
    return f"{name} goes from {start:.3g} at {x} {first:.4g} to {end:.3g} at {x} {last:.4g}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _finite(value: Any) -> bool:
    return math.isfinite(_number(value))


def _mark(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="mark" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "didact", "font.size": 8.5, "text.parse_math": False,
            "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.useoffset": False,
            "axes.linewidth": 0.8, "xtick.major.width": 0.8, "ytick.major.width": 0.8,
        }
    )  # fmt: skip


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no backend, no state between plots

    figure = Figure(figsize=(3.3, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.5)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an inline element: page colours and fonts, ids of its own, a title, no style sheet."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"\A.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", out.getvalue(), flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    for number, colour in enumerate(SERIES, 1):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    own = "s" + hashlib.sha256((svg + title).encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    head = f'<svg class="curve" role="img" aria-label="{html.escape(title)}"'
    return re.sub(r"\A<svg([^>]*)>", lambda m: f"{head}{m[1]}><title>{html.escape(title)}</title>", svg).strip()
