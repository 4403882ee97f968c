"""Hyperparameter spaces: read from a file, written as text for a model, and parsed strictly from its answers.

    {"lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": true}, "layers": {"type": "int", "low": 1, "high": 8},
     "optimizer": {"choices": ["adam", "sgd"]},
     "momentum": {"type": "float", "low": 0, "high": 1, "when": {"optimizer": ["sgd"]}}}

A number is written with the digits that its range resolves (a thousandth of it; on a log scale three significant
digits), not with those of its lower bound: for [0, 1] that has no decimals, and every value would read 0 or 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from didact.types import UserError

Config = Mapping[str, Any]
FIELDS = {"type", "low", "high", "log", "choices", "when"}


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter: a number in a range, possibly on a log scale, or one of some choices.

    `when` gives the values of other parameters under which it is active.
    """

    name: str
    type: Literal["int", "float", "choice"]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def written(self, value: Any) -> str:
        """Format a value."""
        if self.type == "choice":
            return str(value)
        if self.type == "int":
            return str(round(value))
        if self.log:
            return f"{value:.3g}"
        return f"{value:.{max(0, 3 - math.floor(math.log10(self.high - self.low)))}f}"

    def read(self, text: str) -> Any:
        """Parse a value; None if it is invalid or outside the range."""
        text = text.strip(" '\"`")
        if self.type == "choice":
            return next((c for c in self.choices if str(c).casefold() == text.casefold()), None)
        try:
            number = float(text)
        except ValueError:
            return None
        if not math.isfinite(number) or not self.low <= number <= self.high:
            return None
        if self.type == "int":
            return int(number) if number == int(number) else None
        return number

    def drawn(self, rng: np.random.Generator) -> Any:
        """Draw a random value, uniform on the parameter's scale."""
        if self.type == "choice":
            return self.choices[int(rng.integers(len(self.choices)))]
        low, high = (self.low - 0.5, self.high + 0.5) if self.type == "int" and not self.log else (self.low, self.high)
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else float(rng.uniform(low, high))
        return min(max(round(value), int(self.low)), int(self.high)) if self.type == "int" else value

    def describe(self) -> str:
        """Describe the parameter's range in words."""
        if self.type == "choice":
            text = "one of " + ", ".join(map(str, self.choices))
        else:
            kind = "integer" if self.type == "int" else "number"
            scale = ", on a log scale" if self.log else ""
            text = f"{kind} from {self.written(self.low)} to {self.written(self.high)}{scale}"
        when = " and ".join(f"{k} is {' or '.join(map(str, v))}" for k, v in self.when.items())
        return f"{self.name}: {text}{f', only where {when}' if when else ''}"


@dataclass(frozen=True)
class Space:
    """Parameters in an order in which those that a condition names come first."""

    parameters: tuple[Parameter, ...]

    def active(self, config: Config) -> list[Parameter]:
        """The parameters that are active under a configuration's values."""
        return [p for p in self.parameters if all(config.get(k) in v for k, v in p.when.items())]

    def valid(self, config: Config) -> bool:
        """Whether a configuration has exactly the active parameters, each in its range."""
        names = [p.name for p in self.active(config)]
        return set(config) == set(names) and all(p.read(str(config[p.name])) is not None for p in self.active(config))

    def drawn(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a random configuration."""
        config: dict[str, Any] = {}
        for p in self.parameters:
            if all(config.get(k) in v for k, v in p.when.items()):
                config[p.name] = p.drawn(rng)
        return config

    def written(self, config: Config, pair: str = "{name}: {value}", joint: str = ", ") -> str:
        """Format a configuration."""
        return joint.join(
            pair.format(name=p.name, value=p.written(config[p.name])) for p in self.parameters if p.name in config
        )

    def key(self, config: Config) -> str:
        """A key that is equal for configurations with the same text."""
        return self.written(config)

    def read(self, text: str) -> dict[str, Any] | None:
        """Parse a configuration: every active parameter by its name; None if one cannot be parsed.

        A value follows its name, with or without a colon, quotes and braces; parameters that are not active under
        these values are left out.
        """
        config: dict[str, Any] = {}
        for p in self.parameters:
            if any(config.get(k) not in v for k, v in p.when.items()):
                continue
            match = re.search(rf"(?<![\w.]){re.escape(p.name)}['\"]?(?:\s*[:=]\s*|\s+)([^,;}}#\n]+)", text)
            written = match[1] if match else ""
            value = p.read(written)
            if value is None and " " in written.strip():  # names and values separated by spaces alone
                value = p.read(written.split()[0])
            if value is None:
                return None
            config[p.name] = value
        return config


def space_of(text: str) -> Space:
    """Read a space from a JSON file, or from JSON text.

    Raises:
        UserError: it cannot be read; the message names the file, the parameter, the error and the fix.
    """
    source = "space"
    try:
        if not text.lstrip().startswith("{"):
            source = text
            text = Path(source).read_text(encoding="utf-8")
        rows = json.loads(text)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}: a JSON file of parameters is expected") from None
    except ValueError as error:
        raise UserError(f"{source}: not JSON: {error}") from None
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{source}: a JSON object {{parameter: {{...}}}} is expected")
    return Space(tuple(ordered(_parameter(name, row, source) for name, row in rows.items())))


def ordered(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Sort parameters after those that their conditions name.

    Raises:
        UserError: a condition names an unknown parameter, or conditions form a cycle.
    """
    remaining, out = list(parameters), list[Parameter]()
    while remaining:
        placed = {p.name for p in out}
        ready = next((p for p in remaining if p.when.keys() <= placed), None)
        if ready is None:
            names = sorted({k for p in remaining for k in p.when} - placed)
            raise UserError(f"space: {remaining[0].name}: `when` names {', '.join(names)}, unknown or in a cycle")
        remaining.remove(ready)
        out.append(ready)
    return out


def _parameter(name: str, row: Any, source: str) -> Parameter:
    def error(text: str) -> UserError:
        return UserError(f"{source}: {name}: {text}")

    if not isinstance(row, dict) or row.keys() - FIELDS:
        raise error(f"an object with {', '.join(sorted(FIELDS))} is expected")
    when = row.get("when", {})
    if not isinstance(when, dict):
        raise error('`when` is an object {parameter: [values]}, {"optimizer": ["sgd"]}')
    conditions = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    if "choices" in row:
        if not isinstance(row["choices"], list) or len(set(map(str, row["choices"]))) < max(1, len(row["choices"])):
            raise error("`choices` is a list of different values")
        return Parameter(name, "choice", choices=tuple(row["choices"]), when=conditions)
    kind, log = row.get("type", "float"), bool(row.get("log", False))
    low, high = (_number(row.get(end)) for end in ("low", "high"))
    if kind not in ("int", "float"):
        raise error(f"type {kind!r}: int, float, or `choices` in its place")
    if not low < high:
        raise error("`low` and `high` are numbers, the lower first")
    if log and low <= 0:
        raise error(f"low = {low:g}: a log scale begins above 0")
    return Parameter(name, kind, low, high, log, when=conditions)


def _number(value: Any) -> float:
    """A JSON number as a float; NaN if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def permuted(rows: Sequence[Any], seed: int) -> list[Any]:
    """Shuffle rows by the seed."""
    return [rows[i] for i in np.random.default_rng([seed, 31]).permutation(len(rows))]
