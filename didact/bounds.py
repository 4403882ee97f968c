"""Bounds of options, declared in signatures with `annotated_types` and checked in one place.

    def npo(..., beta: Positive = 0.1, draws: Annotated[int, Interval(ge=1, le=64)] = 4)

`describe` puts a bound into words for `--help` and the docs, `violation` says how a value breaks it. Pure.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
"""A share that is not the whole."""
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
Smoothing = Annotated[float, Interval(ge=0, lt=0.5)]
"""A share of labels assumed wrong: with half of them wrong, labels would carry no information."""


hints_of: Callable[[Any], dict[str, Any]] = functools.cache(
    functools.partial(typing.get_type_hints, include_extras=True)
)
"""The annotations of a function or dataclass, bounds included."""


def describe(hint: Any) -> str:
    """Return the bounds of an annotation in words, as in `must be ...`; empty if there are none."""
    limits = _limits_of(hint)
    parts = [_words(m) for m in limits if not isinstance(m, MinLen | MaxLen)]
    low, high = (next((m for m in limits if isinstance(m, kind)), None) for kind in (Gt | Ge, Lt | Le))
    if low is not None and high is not None:
        opening, closing = "(["[isinstance(low, Ge)], ")]"[isinstance(high, Le)]
        parts = [f"in {opening}{_number(_edge(low))}, {_number(_edge(high))}{closing}"]
    sizes = [_words(m) for m in limits if isinstance(m, MinLen | MaxLen)]
    each = next((d for inner in _inner(hint) if (d := describe(inner))), "")
    if typing.get_origin(_bare(hint)) in (types.UnionType, typing.Union):
        return " and ".join(parts) or each
    return ", ".join([*sizes, *parts, *([f"each {each}"] if each else [])])


def violation(hint: Any, value: Any) -> str | None:
    """Return `must be ...` for a value outside a bound of its annotation; None if it is within all."""
    if value is None:
        return None
    limits = _limits_of(hint)
    if limits and not all(_is_within(m, value) for m in limits):
        return f"must be {describe(hint)}"
    bare = _bare(hint)
    if (choices := _choices(bare)) and isinstance(value, str) and value not in choices:
        return f"must be one of {', '.join(choices)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        broken = violations(hints_of(type(value)), {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        return next((f"{name} = {getattr(value, name)!r}: {text}" for name, text in broken), None)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    for inner in _inner(hint):
        if typing.get_origin(bare) in (types.UnionType, typing.Union):
            checked = inner is not type(None) and typing.get_origin(inner) is not typing.Literal
            if checked and (text := violation(inner, value)):
                return text
        elif is_list and (text := next(filter(None, (violation(inner, item) for item in value)), None)):
            return f"must be {describe(hint)}" if describe(inner) else text
    return None


def violations(hints: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield `(name, what it must be)` for every value outside a bound of its annotation."""
    for name, value in values.items():
        if name in hints and (text := violation(hints[name], value)):
            yield name, text


def _choices(bare: Any) -> list[str]:
    """Return the texts that an annotation of literals allows; empty if it allows any text."""
    union = typing.get_origin(bare) in (types.UnionType, typing.Union)
    parts = [_bare(part) for part in typing.get_args(bare)] if union else [bare]
    literals = [part for part in parts if typing.get_origin(part) is typing.Literal]
    if any(part not in literals and part not in (int, float, bool, type(None)) for part in parts):
        return []
    return [str(name) for part in literals for name in typing.get_args(part)]


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _limits_of(hint: Any) -> list[BaseMetadata]:
    """Return the bounds on an annotation itself, intervals split into their two ends."""
    if typing.get_origin(hint) is not Annotated:
        return []
    parts = [list(m) if isinstance(m, GroupedMetadata) else [m] for m in typing.get_args(hint)[1:]]
    return [m for part in parts for m in part if isinstance(m, BaseMetadata)]


def _inner(hint: Any) -> list[Any]:
    bare = _bare(hint)
    plain = typing.get_origin(bare) in (None, typing.Literal)
    return [] if plain else [a for a in typing.get_args(bare) if a is not Ellipsis]


def _is_within(bound: BaseMetadata, value: Any) -> bool:
    """Whether a value is within a bound. NaN and infinity are within none: neither is usable."""
    if isinstance(bound, MinLen | MaxLen):
        size = len(value) if isinstance(value, Sequence) else -1
        return size >= bound.min_length if isinstance(bound, MinLen) else 0 <= size <= bound.max_length
    if not isinstance(value, int | float):
        return True  # text in a union: bounds apply to numbers only
    limit = _edge(bound)
    inside = {Gt: value > limit, Ge: value >= limit, Lt: value < limit, Le: value <= limit}
    return math.isfinite(value) and inside[type(bound)]


def _edge(bound: Any) -> float:
    return next(getattr(bound, name) for name in ("gt", "ge", "lt", "le") if hasattr(bound, name))


def _words(bound: Any) -> str:
    if isinstance(bound, MinLen):
        return f"{bound.min_length} or more values"
    if isinstance(bound, MaxLen):
        return f"{bound.max_length} values at most"
    edge = _number(_edge(bound))
    return {Gt: f"above {edge}", Ge: f"{edge} or more", Lt: f"below {edge}", Le: f"{edge} or less"}[type(bound)]


def _number(value: Any) -> str:
    return f"{value:g}"
