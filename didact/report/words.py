"""Format numbers and values for pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from didact.report import tables

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SPACE = "\u00a0"  # does not break


def number(value: float | None, ends: Sequence[float | None] | None = None) -> str:
    """Format a number: with the decimals that suit its interval `ends`, else with the precision of the tables."""
    if value is None or value != value:
        return "–"
    if (decimals := _decimals(ends)) is not None:
        return _rounded(value, decimals)
    return minus(f"{value:,.0f}") if 1e4 <= abs(value) < 1e7 else _typeset(tables.number(value))


def interval(ends: Sequence[float | None] | None) -> str:
    """Format an interval with decimals that suit its width; empty where an end is missing."""
    return " to ".join(number(v, ends) for v in _finite_ends(ends))


def short(value: float) -> str:
    """Format a threshold in at most three significant digits: 0, −2.3, 10⁻⁹."""
    return _typeset(f"{value:.3g}")


def value(finding: Any) -> str:
    """Format a finding: an estimate with its interval, a number, a list or a dict."""
    if is_estimate(finding):
        ends = (finding.get("low"), finding.get("high"))
        return f"{number(finding['estimate'], ends)} ({interval(ends) or 'no interval'})"
    if isinstance(finding, float):
        return _typeset(f"{finding:.6g}")
    if isinstance(finding, list):
        return ", ".join(map(value, finding)) or "none"
    if isinstance(finding, dict):
        return ", ".join(f"{k.replace('_', ' ')} {value(v)}" for k, v in finding.items()) or "none"
    return typed(finding)


def typed(option: Any) -> str:
    """Format the value of an option, much as it is written on the command line."""
    if isinstance(option, bool) or option is None:
        return {None: "none", True: "yes", False: "no"}[option]
    if isinstance(option, list):
        return " ".join(map(typed, option)) or "none"
    return f"{option:.6g}" if isinstance(option, float) else str(option)


def minus(text: str) -> str:
    """Replace hyphens by true minus signs."""
    return text.replace("-", "−")


def ten(power: int) -> str:
    """Format a power of ten: 10⁻⁹."""
    return "10" + str(power).translate(SUPERSCRIPTS)


def is_estimate(finding: Any) -> bool:
    """Whether this is a number with its interval, `{"estimate", "low", "high"}`; in a curve these keys hold lists."""
    keys = {"estimate", "low", "high", "n"}
    return isinstance(finding, dict) and not isinstance(finding.get("estimate", []), list) and finding.keys() <= keys


def many(count: float | None) -> str:
    """Format a large count in three digits, with a prefix k to P."""
    if count is None:
        return "–"
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{SPACE}{prefix}"
    return f"{count:g}"


def duration(seconds: float) -> str:
    """Format seconds in one or two units of time."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s" if seconds >= 1 else f"{seconds:.2g}{SPACE}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def _typeset(text: str) -> str:
    """Write `1.13e-08` as 1.13 × 10⁻⁸, with true minus signs."""
    mantissa, _, power = text.partition("e")
    if not power:
        return minus(text)
    factor = ten(int(power))
    return {"1": factor, "-1": f"−{factor}"}.get(mantissa, f"{minus(mantissa)}{SPACE}×{SPACE}{factor}")


def _rounded(value: float, decimals: int) -> str:
    return minus(f"{round(value, decimals) + 0.0:,.{decimals}f}")  # + 0.0 turns -0.0 into 0.0


def _finite_ends(ends: Sequence[float | None] | None) -> list[float]:
    finite = [float(v) for v in ends or () if v is not None and math.isfinite(v)]
    return finite if len(finite) == 2 else []


def _decimals(ends: Sequence[float | None] | None) -> int | None:
    """Decimals (0 to 6) that show two digits of an interval's half-width; None where another notation reads better."""
    finite = _finite_ends(ends)
    largest = max((abs(v) for v in finite), default=math.inf)
    if largest >= 100:
        return None if largest >= 1e7 else 0 if largest >= 1e4 else 1
    half_width = abs(finite[1] - finite[0]) / 2
    needed = 1 - math.floor(math.log10(half_width)) if half_width else 3
    if needed > 6:
        return 3 if largest >= 0.05 or not largest else None
    return max(3, needed)
