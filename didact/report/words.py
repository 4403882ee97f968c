"""Numbers and values as a page writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from didact.report import tables

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SPACE = "\u00a0"  # does not break


def number(value: float | None, ends: Sequence[float | None] | None = None) -> str:
    """A number as the tables have it, set as in print; with the decimals of its interval where it has `ends`."""
    if value is None or value != value:
        return "–"
    if (places := _places(ends)) is not None:
        return _rounded(value, places)
    return minus(f"{value:,.0f}") if 1e4 <= abs(value) < 1e7 else _set(tables.number(value))


def interval(ends: Sequence[float | None] | None) -> str:
    """Both ends with as many decimals as its width deserves; nothing where one is missing."""
    return " to ".join(number(v, ends) for v in _known(ends))


def short(value: float) -> str:
    """A threshold in three digits, no more than it needs: 0, −2.3, 10⁻⁹."""
    return _set(f"{value:.3g}")


def value(given: Any) -> str:
    """A finding as a reader writes it."""
    if is_estimate(given):
        ends = (given.get("low"), given.get("high"))
        return f"{number(given['estimate'], ends)} ({interval(ends) or 'no interval'})"
    if isinstance(given, float):
        return _set(f"{given:.6g}")
    if isinstance(given, list):
        return ", ".join(map(value, given)) or "none"
    if isinstance(given, dict):
        return ", ".join(f"{k.replace('_', ' ')} {value(v)}" for k, v in given.items()) or "none"
    return typed(given)


def typed(given: Any) -> str:
    """An option as it is written on the command line."""
    if isinstance(given, bool) or given is None:
        return {None: "none", True: "yes", False: "no"}[given]
    if isinstance(given, list):
        return " ".join(map(typed, given)) or "none"
    return f"{given:.6g}" if isinstance(given, float) else str(given)


def minus(text: str) -> str:
    """The sign of a negative number as long as a plus."""
    return text.replace("-", "−")


def ten(power: int) -> str:
    """A power of ten."""
    return "10" + str(power).translate(RAISED)


def is_estimate(given: Any) -> bool:
    """Whether this is a number with its interval: `{"estimate", "low", "high"}`. A curve has lists of them."""
    keys = {"estimate", "low", "high", "n"}
    return isinstance(given, dict) and not isinstance(given.get("estimate", []), list) and given.keys() <= keys


def many(count: float | None) -> str:
    """A large count in three digits."""
    if count is None:
        return "–"
    for size, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{SPACE}{name}"
    return f"{count:g}"


def duration(seconds: float) -> str:
    """Seconds as one or two units of time."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s" if seconds >= 1 else f"{seconds:.2g}{SPACE}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def _set(text: str) -> str:
    """`1.13e-08` as 1.13 × 10⁻⁸, and a true minus sign."""
    mantissa, _, power = text.partition("e")
    if not power:
        return minus(text)
    raised = ten(int(power))
    return {"1": raised, "-1": f"−{raised}"}.get(mantissa, f"{minus(mantissa)}{SPACE}×{SPACE}{raised}")


def _rounded(value: float, places: int) -> str:
    return minus(f"{round(value, places) + 0.0:,.{places}f}")  # adding 0 takes the sign off a zero


def _known(ends: Sequence[float | None] | None) -> list[float]:
    known = [float(v) for v in ends or () if v is not None and math.isfinite(v)]
    return known if len(known) == 2 else []


def _places(ends: Sequence[float | None] | None) -> int | None:
    """Decimals that show two digits of an interval's half-width: 3 to 6, or none where that is a poor notation."""
    known = _known(ends)
    largest = max((abs(v) for v in known), default=math.inf)
    if largest >= 100:
        return None if largest >= 1e7 else 0 if largest >= 1e4 else 1
    half = abs(known[1] - known[0]) / 2
    needed = 1 - math.floor(math.log10(half)) if half else 3
    if needed > 6:
        return 3 if largest >= 0.05 or not largest else None
    return max(3, needed)
