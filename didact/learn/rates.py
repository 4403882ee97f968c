"""Learning rates by model size, and a warning of plans that can hardly move the weights."""

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
FEW = 5  # steps below which a plan is reported, unless the user set the number of steps
MOVES = 1e-3  # a rate that moves any model, however small
REACH = 0.5  # a plan moves next to nothing if its rates sum up to less than so many steps at the rate by size


def by_size(weights: int, adapter: bool = False) -> float:
    """Adam's rate for a model of so many weights, 1e-5 sqrt(7e9 / weights), or ten times that for an adapter."""
    rate = REFERENCE_LR * math.sqrt(REFERENCE_WEIGHTS / max(weights, 1))
    return float(f"{rate * (ADAPTER if adapter else 1):.1e}")


def chosen(model: Model, fit: Fit) -> tuple[float, str]:
    """Return the rate to use where none is given, and a message about it: by size, never below the paper's.

    Papers tune for models larger than most that are used here, and an adapter at their rate hardly moves.
    """
    rate = by_size(model.parameters, bool(fit.lora))
    if rate <= fit.lr or fit.optimizer not in ("adam", "adamw"):
        return fit.lr, ""
    size = f"{_short(model.parameters)} weights{' and LoRA' if fit.lora else ''}"
    return rate, f"lr {rate:g}: ours for {size}; the paper's is {fit.lr:g} (--lr sets it)"


def fit_for(method: Callable[..., Any], model: Model, **changes: Any) -> Fit:
    """Return a method's `Fit` for this model: its paper's, but with the rate by size where that is larger.

    `didact run` does so by itself where no rate is given; a method called from Python uses its paper's rate.

    Args:
        method: `didact.unlearning.npo`, ...
        model: what it will train.
        changes: options of `Fit`; with `lr` among them that rate stays.

    Raises:
        UserError: the method trains nothing, or an option is invalid.
    """
    default = inspect.signature(method).parameters.get("fit")
    if default is None:
        raise UserError(f"{getattr(method, '__name__', method)} has no `fit`: it trains nothing")
    fit: Fit = default.default.replace(**changes)
    rate, message = (fit.lr, "") if "lr" in changes else chosen(model, fit)
    if message:
        print(message.replace("--lr", "lr="), file=sys.stderr)
    return fit.replace(lr=rate)


def plan_warning(model: Model, fit: Fit, records: int) -> str:
    """Return a warning if a plan can hardly move the model, else an empty string."""
    steps = fit.total_steps(records)
    reach = fit.lr * sum(schedules.factor(fit.schedule, s, steps, fit.warmup_count(records)) for s in range(steps))
    by_steps, size_rate = fit.steps is not None, by_size(model.parameters, bool(fit.lora))
    too_small = reach < REACH * min(size_rate, MOVES)
    if (steps >= FEW or by_steps) and not (too_small and fit.optimizer in ("adam", "adamw")):
        return ""
    plan = f"{steps} optimiser step{'' if steps == 1 else 's'}"
    plan += "" if by_steps else f" ({records:,} records, {fit.rows} a step, {fit.epochs:g} epochs)"
    remedy = "raise --lr or --steps" if by_steps else "lower --rows, or raise --epochs or --lr"
    return f"the plan is {plan} at lr {fit.lr:g}, which can hardly move {_short(model.parameters)} weights: {remedy}"


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
