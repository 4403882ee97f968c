"""Parse words as the types that the catalogue names: `float`, `int | None`, `mean|sum`, `tuple[float, ...]`. Pure.

The catalogue has every option's type and bounds as text, so that a wrong value is refused before a method is imported.
"""

from __future__ import annotations

import math
import re
from typing import Any

from didact.errors import UserError

WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
SEVERAL = re.compile(r"(?:list|tuple|Sequence|Collection|collections\.abc\.\w+)\[.*\]")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("null", "~", "none", "None")  # the last two may be plain text


def several(kind: str) -> bool:
    """Whether values of this type are lists, even if one word is given."""
    return SEVERAL.fullmatch(kind) is not None


def value(kind: str, raw: Any) -> Any:
    """Parse a word or a list of words as a value of a type; lists become tuples.

    Raises:
        ValueError: it is not of the type.
    """
    parts = [part for part in kind.split(" | ") if part != "None"]
    if kind.endswith("None") and (raw is None or raw in NOTHING[: 2 if "str" in parts else None]):
        return None
    problem = ValueError(raw)
    for part in parts:
        try:
            return _sequence(part, raw) if several(part) else _scalar(part, raw)
        except ValueError as error:
            problem = error
    raise problem


def _sequence(kind: str, raw: Any) -> tuple[Any, ...]:
    inner = kind.partition("[")[2].removesuffix("]")
    words = raw if isinstance(raw, list | tuple) else [raw]
    if inner.startswith("Literal"):
        inner = "|".join(re.findall(r"'([^']*)'", inner))
    kinds = [part for part in inner.split(", ") if part != "..."]
    if len(kinds) > 1 and len(kinds) != len(words):
        raise ValueError(raw)
    return tuple(_scalar(kinds[i % len(kinds)], word) for i, word in enumerate(words))


def _scalar(kind: str, raw: Any) -> Any:
    if kind == "bool" and isinstance(raw, bool):
        return raw
    word = str(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else raw
    if not isinstance(word, str):
        raise ValueError(raw)
    plain = word.strip()
    if kind == "str" or plain in kind.split("|"):
        return word if kind == "str" else plain
    if kind == "bool" and plain.lower() in TRUTH:
        return TRUTH[plain.lower()]
    if kind == "int" and WHOLE.fullmatch(plain):
        return int(plain)
    if kind == "float" and NUMBER.fullmatch(plain) and math.isfinite(number := float(plain)):
        return number
    raise ValueError(raw)


def budget(text: str) -> tuple[float, str]:
    """Parse `20M-tokens`, `1e15-flops` or `90-seconds` to amount and unit.

    Raises:
        UserError: it has another form.
    """
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)([kMGT]?)-(tokens|flops|seconds)", text)
    if not match or not (amount := float(match[1])) > 0:
        raise UserError(f"budget '{text}': a number and its unit are expected, as in 20M-tokens or 90-seconds")
    return amount * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2]], match[3]


def breaks(bound: str, value: Any) -> bool:
    """Whether a value is outside bounds in the words of `bounds.describe`."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    fewest, most = re.search(r"(\d+) or more values", bound), re.search(r"(\d+) values at most", bound)
    if (fewest and len(items) < int(fewest[1])) or (most and len(items) > int(most[1])):
        return True
    limits = re.sub(r"\d+ (or more values|values at most)", "", bound)
    return any(_outside(limits, item) for item in items if isinstance(item, int | float))


def _outside(bound: str, number: float) -> bool:
    if span := re.search(r"in ([\[(])(\S+), (\S+)([\])])", bound):
        low, high = float(span[2]), float(span[3])
        above = number >= low if span[1] == "[" else number > low
        return not (above and (number <= high if span[4] == "]" else number < high))
    checks = {
        r"above (\S+)": lambda edge: number > edge,
        r"below (\S+)": lambda edge: number < edge,
        r"(\S+) or more": lambda edge: number >= edge,
        r"(\S+) or less": lambda edge: number <= edge,
    }
    limits = [(holds, match) for pattern, holds in checks.items() if (match := re.search(pattern, bound))]
    return any(not holds(float(match[1])) for holds, match in limits)
