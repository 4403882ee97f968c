"""`@method`: how a function becomes a method, and the catalogue made from its signature."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from didact.types import Record

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method: its function and what the command line, `methods` and `compare` need to know."""

    name: str
    family: str
    function: Callable[..., Any]
    paper: str
    year: int
    source: str
    gives: tuple[str, ...]
    capabilities: tuple[str, ...]
    protocol: str | None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baseline: bool = False

    @property
    def module(self) -> str:
        """Where the function is defined."""
        return self.function.__module__

    def needs(self) -> dict[str, dict[str, Any]]:
        """Its inputs: `{parameter: {"kind": "model" or a record kind, "required": bool}}`."""
        hints = typing.get_type_hints(self.function)
        out: dict[str, dict[str, Any]] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            kind = _input_kind(hints[name])
            if kind:
                out[name] = {"kind": kind, "required": parameter.default is inspect.Parameter.empty}
        return out


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    paper: str,
    year: int,
    source: str,
    gives: tuple[str, ...] = ("models",),
    capabilities: tuple[str, ...] = ("train",),
    protocol: Literal["answer", "prefer", "forget", "text", "act"] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    baseline: bool = False,
) -> Callable[[F], F]:
    """Register a function as a method.

    Args:
        name: on the command line.
        paper: its title.
        year: it appeared.
        source: where (`arXiv:...`).
        gives: parts of the `Result` it fills: models, predict, records, findings.
        capabilities: what its model must offer.
        protocol: how its result is scored before and after.
        presets: named option sets, `{"simnpo": {"loss": "simnpo", ...}}`; `method:preset` picks one.
        baseline: registered for comparison; not one of the papers.
    """

    def register(function: F) -> F:
        family = function.__module__.split(".")[-2]
        METHODS[name] = Method(
            name=name, family=family, function=function, paper=paper, year=year, source=source, gives=gives,
            capabilities=capabilities, protocol=protocol, presets=dict(presets or {}), baseline=baseline,
        )  # fmt: skip
        return function

    return register


def _input_kind(hint: Any) -> str | None:
    """`model` for a Model, the record's lower-case name for a sequence of records, else None."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for option in options:
        if getattr(option, "__name__", "") == "Model":
            return "model"
        if typing.get_origin(option) in (collections.abc.Sequence, list):
            (item,) = typing.get_args(option)
            if isinstance(item, type) and issubclass(item, Record):
                return item.__name__.lower()
    return None
