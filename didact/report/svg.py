"""SVG for pages, written directly: a few lines, dots and bars need no plotting library with its own style sheet.

Colours and fonts come from the page's CSS classes, so that one picture serves light, dark and print. The label of a
plot states what it shows, for screen readers. All text that comes from a file is escaped here.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from didact.report import words

CHARACTER = 6.1  # px: approximate width of a character at the plots' font size of 11 px
MARK = 190  # px: width of a plot in a table row
INSET = 9.0  # px: margin left and right of its scale
LINE = 14.0  # px: height of a label


# --- axes ------------------------------------------------------------------------------------


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """A function from a value in [low, high] to its position in [start, end]; the middle if `low` equals `high`."""
    if log:
        linear = scale(math.log(low), math.log(high), start, end)
        return lambda v: linear(math.log(v))
    if high <= low:
        return lambda v: (start + end) / 2
    return lambda v: start + (end - start) * (v - low) / (high - low)


TINY = 1e-300  # smaller numbers are denormal and lose precision


def axis_ticks(low: float, high: float, count: int) -> list[float]:
    """Ticks at about `count` steps of 1, 2 or 5 times a power of ten, which enclose `low` and `high`."""
    if high - low <= max(1e-12 * max(abs(low), abs(high)), TINY):
        width = max(abs(low), abs(high)) / 5 if max(abs(low), abs(high)) > TINY else 1.0
        low, high = low - width / 2, high + width / 2
    min_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= min_step * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, last + 1)]


def format_ticks(ticks: Sequence[float]) -> tuple[list[str], str]:
    """Format ticks with the decimals of their step; a power of ten is factored out where they are tiny or huge."""
    largest = max((abs(v) for v in ticks), default=0.0)
    power = math.floor(math.log10(largest) + 1e-9) if largest else 0
    power = 0 if -3 <= power < 5 else power
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest or 1.0) / 10.0**power
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    names = [words.minus(f"{v / 10.0**power:,.{decimals}f}") if v else "0" for v in ticks]
    return names, f"×{words.ten(power)}" if power else ""


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """At most about six powers of ten between two values; if there are fewer than two, 1, 2 and 5 times powers."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    powers = range(first, last + 1)
    exponents = [p for p in powers if low <= 10.0**p * (1 + 1e-9) and 10.0**p <= high * (1 + 1e-9)]
    if len(exponents) >= 2:
        shown = exponents[:: math.ceil(len(exponents) / 6)]
        return [(10.0**p, f"{10.0**p:g}" if -3 < p < 4 else words.ten(p)) for p in shown]
    values = [f * 10.0**p for p in powers for f in (1, 2, 5)]
    return [(v, f"{v:g}") for v in values if low <= v <= high] or [(low, f"{low:.3g}"), (high, f"{high:.3g}")]


# --- parts of plots --------------------------------------------------------------------------


def number(value: Any) -> float:
    """`value` as a float; NaN if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def ends_of(interval: Any) -> list[float]:
    """Both ends of an interval; empty unless both are finite."""
    ends = [number(v) for v in interval or ()]
    return ends if len(ends) == 2 and all(map(math.isfinite, ends)) else []


def drawable(x: float, y: float, log: bool) -> bool:
    """Whether a point can be drawn on the axes."""
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)


def mean_of(values: Sequence[float]) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


def fitted(text: str, width: float) -> str:
    """Text cut to about `width` px."""
    limit = max(3, int(width / CHARACTER))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, text: str, kind: str, title: str = "") -> str:
    """A text, with the full `title` as a tooltip where it was cut."""
    title_tag = f"<title>{html.escape(title)}</title>" if title and title != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}{title_tag}</text>'


def root(width: float, height: float, label: str, parts: Sequence[str], kind: str = "chart") -> Markup:
    """The whole picture, with its text alternative `label`."""
    attributes = f'viewBox="0 0 {width:g} {height:g}"' + (
        f' width="{width:g}" height="{height:g}"' if kind == "row"
        else f' style="max-width: {width:g}px"' if "figure" in kind else ""
    )  # fmt: skip
    open_tag = f'<svg class="{kind}" role="img" aria-label="{html.escape(label)}" {attributes}>'
    return Markup(open_tag + "".join(parts) + "</svg>")


def bottom(ticks: Sequence[tuple[float, str]], x_of: Callable[[float], float], y: float) -> list[str]:
    """The ticks of a horizontal axis and their names."""
    parts = [line(x_of(v), y, x_of(v), y + 4, "axis") for v, _ in ticks]
    return parts + [text(x_of(v), y + 15, name, "tick middle") for v, name in ticks]


def whiskers(left: float, right: float, y: float) -> list[str]:
    """An interval as a line with bars at its ends."""
    bars = [line(x, y - 4, x, y + 4, "span") for x in (left, right)]
    return [line(left, y, right, y, "span"), *bars]


def labels(names: Sequence[tuple[float, str]], y: float, width: float) -> list[str]:
    """Names centred at their x and kept inside the picture; one that would touch an earlier one is left out."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for x, name in names:
        half_width = CHARACTER * len(name) / 2
        x = min(max(x, half_width), width - half_width)
        if all(x - half_width > b + 4 or x + half_width < a - 4 for a, b in taken):
            parts.append(text(x, y, name, "tick middle"))
            taken.append((x - half_width, x + half_width))
    return parts


def stacked(targets: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending positions at least `LINE` apart, close to the ascending `targets`, between `top` and `bottom`."""
    places: list[float] = []
    for y in targets:
        places.append(max(y, places[-1] + LINE if places else top))
    limit = bottom - 6
    for i in reversed(range(len(places))):
        places[i] = limit = min(places[i], limit)
        limit -= LINE
    return places
