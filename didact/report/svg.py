"""SVG for pages, written by hand: a few lines, dots and bars, and no library's style sheet to take out again.

Colours and fonts are the page's, through classes, so that one text serves light, dark and print. What a plot shows is
also said in its label, for those who hear the page. Everything that comes from a file is escaped here.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from didact.report import words

CHARACTER = 6.1  # px, about the width of one at the plots' 11 px
MARK = 190  # px, the width of a metric's mark
INSET = 9.0  # px, left and right of its scale
LINE = 14.0  # px, the height of a label


# --- axes ------------------------------------------------------------------------------------


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """A value's place between `start` and `end`; both ends alike puts it in the middle."""
    if log:
        plain = scale(math.log(low), math.log(high), start, end)
        return lambda v: plain(math.log(v))
    if high <= low:
        return lambda v: (start + end) / 2
    return lambda v: start + (end - start) * (v - low) / (high - low)


TINY = 1e-300  # below it numbers lose their digits


def around(low: float, high: float, count: int) -> list[float]:
    """About `count` steps of 1, 2 or 5 times a power of ten, from at or below `low` to at or above `high`."""
    if high - low <= max(1e-12 * max(abs(low), abs(high)), TINY):
        wide = max(abs(low), abs(high)) / 5 if max(abs(low), abs(high)) > TINY else 1.0
        low, high = low - wide / 2, high + wide / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, last + 1)]


def named(ticks: Sequence[float]) -> tuple[list[str], str]:
    """Ticks in the decimals of their step, and the power of ten left out of them where they are tiny or huge."""
    largest = max((abs(v) for v in ticks), default=0.0)
    power = math.floor(math.log10(largest) + 1e-9) if largest else 0
    power = 0 if -3 <= power < 5 else power
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest or 1.0) / 10.0**power
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    names = [words.minus(f"{v / 10.0**power:,.{places}f}") if v else "0" for v in ticks]
    return names, f"×{words.ten(power)}" if power else ""


def decades(low: float, high: float) -> list[tuple[float, str]]:
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


def ends_of(interval: Any) -> list[float]:
    """Both ends of an interval, or nothing."""
    ends = [number(v) for v in interval or ()]
    return ends if len(ends) == 2 and all(map(math.isfinite, ends)) else []


def drawable(x: float, y: float, log: bool) -> bool:
    """Whether a point has a place on the axes."""
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)


def mean_of(values: Sequence[float]) -> float:
    """The mean of what is finite."""
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def fitted(text: str, width: float) -> str:
    """Text cut to about `width` px."""
    most = max(3, int(width / CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, text: str, kind: str, title: str = "") -> str:
    """A text, with a title where it was cut."""
    more = f"<title>{html.escape(title)}</title>" if title and title != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}{more}</text>'


def root(width: float, height: float, label: str, parts: Sequence[str], kind: str = "chart") -> Markup:
    """The picture with its label."""
    size = f'viewBox="0 0 {width:g} {height:g}"' + (
        f' width="{width:g}" height="{height:g}"' if kind == "row"
        else f' style="max-width: {width:g}px"' if "figure" in kind else ""
    )  # fmt: skip
    head = f'<svg class="{kind}" role="img" aria-label="{html.escape(label)}" {size}>'
    return Markup(head + "".join(parts) + "</svg>")


def bottom(ticks: Sequence[tuple[float, str]], across: Callable[[float], float], y: float) -> list[str]:
    """The ticks of a horizontal axis."""
    parts = [line(across(v), y, across(v), y + 4, "axis") for v, _ in ticks]
    return parts + [text(across(v), y + 15, name, "tick middle") for v, name in ticks]


def whiskers(left: float, right: float, y: float) -> list[str]:
    """The ends of an interval."""
    bars = [line(x, y - 4, x, y + 4, "span") for x in (left, right)]
    return [line(left, y, right, y, "span"), *bars]


def labels(named: Sequence[tuple[float, str]], y: float, width: float) -> list[str]:
    """Names under their places, kept inside the picture; one that would touch an earlier one is left out."""
    parts: list[str] = []
    drawn: list[tuple[float, float]] = []
    for x, name in named:
        half = CHARACTER * len(name) / 2
        x = min(max(x, half), width - half)
        if all(x - half > b + 4 or x + half < a - 4 for a, b in drawn):
            parts.append(text(x, y, name, "tick middle"))
            drawn.append((x - half, x + half))
    return parts


def stacked(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending places at least `LINE` apart, near the ascending ones `wanted`, and between `top` and `bottom`."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + LINE if placed else top))
    limit = bottom - 6
    for i in reversed(range(len(placed))):
        placed[i] = limit = min(placed[i], limit)
        limit -= LINE
    return placed
