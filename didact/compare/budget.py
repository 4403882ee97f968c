"""What an arm may use, and how many steps that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from didact import values
from didact.models import cost
from didact.types import UserError

Unit = Literal["tokens", "flops", "seconds"]
PROBES = (2, 6)  # steps of the two short runs a budget is laid out by


@dataclass(frozen=True)
class Budget:
    """What every arm may use up: tokens (once a forward pass, three times when trained), flops or seconds."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From `20M-tokens`, `1e15-flops`, `90-seconds`.

        Raises:
            UserError: it is none of these.
        """
        amount, unit = values.budget(text)
        return cls(amount, cast(Unit, unit))

    def used(self, meter: cost.Meter | cost.Part) -> float:
        """What a meter says in this unit."""
        return float(getattr(meter, self.unit))


def steps_within(budget: Budget, name: str, probe: Callable[[int], cost.Meter]) -> dict[str, Any]:
    """Steps that use the budget up: cost is taken as a + b steps, from two short runs of `probe(steps)`.

    `a` is what a method does once (samples, a reference), so that a method that samples more trains less. A reference
    that is asked as far as training will see grows with the steps, until all records have been seen (`cost.partly`).

    Raises:
        UserError: the budget does not reach the first step.
    """
    meters = [probe(steps) for steps in PROBES]
    grown = [sum(map(budget.used, meter.parts)) for meter in meters]
    rest = [budget.used(meter) - part for meter, part in zip(meters, grown, strict=True)]
    (once, each), (begun, growth) = _line(rest), _line(grown)
    whole = sum(budget.used(part) / part.share for part in meters[1].parts)
    fixed, slope = once + begun, each + growth
    if slope > 0 and begun + growth * (budget.amount - fixed) / slope > whole:
        fixed, slope = once + whole, each
    steps = math.floor((budget.amount - fixed) / slope) if slope > 0 else 0
    if steps < 1:
        wanted = f"{fixed + slope:,.0f} {budget.unit}"
        raise UserError(f"{name}: the budget does not reach its first step, which takes {wanted}")
    return {"steps": steps, "fixed": fixed, "per_step": slope}


def _line(used: Sequence[float]) -> tuple[float, float]:
    """Where a line through what both probes used begins, and what it gains a step."""
    slope = (used[1] - used[0]) / (PROBES[1] - PROBES[0])
    return used[0] - PROBES[0] * slope, slope
