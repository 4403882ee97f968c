"""What an arm may use, and how many steps that is."""

from __future__ import annotations

import math
from collections.abc import Callable
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

    def used(self, meter: cost.Meter) -> float:
        """What a meter says in this unit."""
        return float(getattr(meter, self.unit))


def steps_within(budget: Budget, name: str, probe: Callable[[int], cost.Meter]) -> dict[str, Any]:
    """Steps that use the budget up: cost is taken as a + b steps, from two short runs of `probe(steps)`.

    `a` is what a method does once (references, samples), so that a method that samples more trains less.

    Raises:
        UserError: the budget does not reach the first step.
    """
    used = [budget.used(probe(steps)) for steps in PROBES]
    slope = (used[1] - used[0]) / (PROBES[1] - PROBES[0])
    fixed = used[0] - PROBES[0] * slope
    steps = math.floor((budget.amount - fixed) / slope) if slope > 0 else 0
    if steps < 1:
        wanted = f"{fixed + slope:,.0f} {budget.unit}"
        raise UserError(f"{name}: the budget does not reach its first step, which takes {wanted}")
    return {"steps": steps, "fixed": fixed, "per_step": slope}
