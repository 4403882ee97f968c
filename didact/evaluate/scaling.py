"""How far to go along a direction in weight space: the largest scale that keeps what must stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from didact.learn import specialists
from didact.learn.language import TrainResult
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import Demo, Result, UserError


def accuracy(model: Model, demos: Sequence[Demo]) -> float:
    """Share of completion tokens that are the first choice."""
    scored = forward.score(model, specialists.rows(model, demos), {"correct": token_functions.correct})
    right = [v["correct"] for _, _, v in scored]
    return sum(float(r.sum()) for r in right) / sum(len(r) for r in right)


def at_scale(
    model: Model,
    tuned: TrainResult,
    retain: Sequence[Demo] | None,
    at: Callable[[float], Model],
    scale: float | None,
    scales: Sequence[float],
    keep: float,
) -> Result:
    """The model at a scale, with what `tuned` cost.

    Args:
        model: the start.
        tuned: the specialist that gave the direction.
        retain: records whose completions must stay.
        at: the model at a scale.
        scale: which; by default the largest of `scales` that keeps `keep` of the start's accuracy on `retain`.
        scales: those tried, in rising order until one loses more.
        keep: share of the accuracy.

    Raises:
        UserError: neither a scale nor retain records.
    """
    tried: dict[str, float] = {}
    warnings: list[str] = []
    if scale is None:
        if not retain:
            raise UserError("give --scale, or --retain records to choose it by")
        enough = keep * accuracy(model, retain)
        scale = 0.0
        for s in sorted(scales):
            tried[f"{s:g}"] = accuracy(at(s), retain)
            if tried[f"{s:g}"] < enough:
                break
            scale = s
        if not scale:
            warnings.append(f"even scale {min(scales):g} loses more than {1 - keep:.0%} of retain: nothing was changed")
    findings = {"scale": scale, "retain_accuracy": tried}
    return tuned.result(models={"model": at(scale)}, findings=findings, warnings=warnings)
