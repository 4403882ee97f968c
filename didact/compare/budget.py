"""The training budget of an arm, and how many steps it allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from didact import values
from didact.models import cost
from didact.types import UserError

Unit = Literal["tokens", "flops", "seconds"]
PROBES = (2, 6)  # steps of the two short runs that measure what training costs


@dataclass(frozen=True)
class Budget:
    """What every arm may spend: tokens (counted once per forward pass, three times when trained), flops or seconds."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse `20M-tokens`, `1e15-flops` or `90-seconds`.

        Raises:
            UserError: it has none of these forms.
        """
        amount, unit = values.budget(text)
        return cls(amount, cast(Unit, unit))

    def reading(self, meter: cost.Meter | cost.Part) -> float:
        """A meter's reading in this budget's unit."""
        return float(getattr(meter, self.unit))


def steps_within(budget: Budget, name: str, probe: Callable[[int], cost.Meter]) -> dict[str, Any]:
    """Find the number of steps that uses up the budget, with cost = a + b steps fitted to two runs of `probe(steps)`.

    `a` is the one-off cost (sampling, a reference model), so that a method that samples more trains less. The cost of
    a reference read only for the records that training uses grows with the steps until it has read all (`cost.partly`).

    Raises:
        UserError: the budget does not cover the first step.
    """
    meters = [probe(steps) for steps in PROBES]
    reference = [sum(map(budget.reading, meter.parts)) for meter in meters]
    remainder = [budget.reading(meter) - part for meter, part in zip(meters, reference, strict=True)]
    (setup, per_step), (offset, growth) = _line(remainder), _line(reference)
    full = sum(budget.reading(part) / part.share for part in meters[1].parts)
    fixed, slope = setup + offset, per_step + growth
    if slope > 0 and offset + growth * (budget.amount - fixed) / slope > full:
        fixed, slope = setup + full, per_step
    steps = math.floor((budget.amount - fixed) / slope) if slope > 0 else 0
    if steps < 1:
        needed = f"{fixed + slope:,.0f} {budget.unit}"
        raise UserError(f"{name}: the budget does not cover its first step, which needs {needed}")
    return {"steps": steps, "fixed": fixed, "per_step": slope}


def _line(spent: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope (per step) of the line through the costs of both probes."""
    slope = (spent[1] - spent[0]) / (PROBES[1] - PROBES[0])
    return spent[0] - PROBES[0] * slope, slope
