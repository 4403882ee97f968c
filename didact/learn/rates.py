"""Learning rates by the model's size, and what a plan of steps can move."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

from didact.learn import schedules
from didact.models.model import Model
from didact.types import Fit, UserError

REFERENCE_WEIGHTS, REFERENCE_LR = 7e9, 1e-5
ADAPTER = 10.0  # adapters want about ten times the rate of whole weights, at every size (Schulman et al. 2025)
FEW = 5  # steps, below which a plan that nobody asked for is told
MOVES = 1e-3  # a rate that moves any model, however small
REACH = 0.5  # steps at the size's own rate, below which the sum of a plan's rates moves next to nothing


def by_size(weights: int, adapter: bool = False) -> float:
    """Adam's rate for a model of so many weights, 1e-5 sqrt(7e9 / weights), or ten times that for an adapter."""
    rate = REFERENCE_LR * math.sqrt(REFERENCE_WEIGHTS / max(weights, 1))
    return float(f"{rate * (ADAPTER if adapter else 1):.1e}")


def chosen(model: Model, fit: Fit) -> tuple[float, str]:
    """The rate that acts where none is given, and what to say of it: by size, never below the paper's own.

    Papers tune for models larger than most that are tried here, and an adapter at their rate stays where it was.
    """
    ours = by_size(model.parameters, bool(fit.lora))
    if ours <= fit.lr or fit.optimizer not in ("adam", "adamw"):
        return fit.lr, ""
    what = f"{_many(model.parameters)} weights{' and LoRA' if fit.lora else ''}"
    return ours, f"lr {ours:g}: ours for {what}; the paper's is {fit.lr:g} (--lr sets it)"


def fit_for(method: Callable[..., Any], model: Model, **changes: Any) -> Fit:
    """A method's training at this model's size: its paper's, but with the rate by size where that is the larger one.

    `didact run` does so by itself where no rate is given; a method called from Python trains as its paper has it.

    Args:
        method: `didact.unlearning.npo`, ...
        model: what it will train.
        changes: options of `Fit`; with `lr` among them that rate stays.

    Raises:
        UserError: the method trains nothing, or an option is wrong.
    """
    default = inspect.signature(method).parameters.get("fit")
    if default is None:
        raise UserError(f"{getattr(method, '__name__', method)} has no `fit`: it trains nothing")
    fit: Fit = default.default.replace(**changes)
    rate, said = (fit.lr, "") if "lr" in changes else chosen(model, fit)
    if said:
        print(said.replace("--lr", "lr="), file=sys.stderr)
    return fit.replace(lr=rate)


def told(model: Model, fit: Fit, records: int) -> str:
    """Why a plan can hardly move the model; nothing where it can."""
    steps = fit.total_steps(records)
    reach = fit.lr * sum(schedules.factor(fit.schedule, s, steps, fit.warmup_count(records)) for s in range(steps))
    asked, own = fit.steps is not None, by_size(model.parameters, bool(fit.lora))
    small = reach < REACH * min(own, MOVES)
    if (steps >= FEW or asked) and not (small and fit.optimizer in ("adam", "adamw")):
        return ""
    plan = f"{steps} optimiser step{'' if steps == 1 else 's'}"
    plan += "" if asked else f" ({records:,} records, {fit.rows} a step, {fit.epochs:g} epochs)"
    mend = "raise --lr or --steps" if asked else "lower --rows, or raise --epochs or --lr"
    return f"the plan is {plan} at lr {fit.lr:g}, which can hardly move {_many(model.parameters)} weights: {mend}"


def _many(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
