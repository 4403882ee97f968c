"""Choose the scale of a direction in weight space: the largest one that keeps accuracy on retained records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from didact.learn import specialists
from didact.learn.language import TrainResult
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import Demo, Result, UserError


def accuracy(model: Model, demos: Sequence[Demo]) -> float:
    """Share of completion tokens that are the model's top choice."""
    scored = forward.score(model, specialists.rows(model, demos), {"correct": token_functions.correct})
    correct = [v["correct"] for _, _, v in scored]
    return sum(float(r.sum()) for r in correct) / sum(len(r) for r in correct)


def at_scale(
    model: Model,
    tuned: TrainResult,
    retain: Sequence[Demo] | None,
    at: Callable[[float], Model],
    scale: float | None,
    scales: Sequence[float],
    keep: float,
) -> Result:
    """Return the model at a scale, with the cost of `tuned`.

    Args:
        model: the base model.
        tuned: the specialist that gave the direction.
        retain: records whose accuracy must be kept.
        at: builds the model at a scale.
        scale: the scale; by default the largest of `scales` that keeps `keep` of the base's accuracy on `retain`.
        scales: candidates, tried in rising order until one loses more.
        keep: share of the accuracy to keep.

    Raises:
        UserError: neither a scale nor retain records.
    """
    accuracies: dict[str, float] = {}
    warnings: list[str] = []
    if scale is None:
        if not retain:
            raise UserError("give --scale, or --retain records to choose it by")
        threshold = keep * accuracy(model, retain)
        scale = 0.0
        for s in sorted(scales):
            accuracies[f"{s:g}"] = accuracy(at(s), retain)
            if accuracies[f"{s:g}"] < threshold:
                break
            scale = s
        if not scale:
            warnings.append(f"even scale {min(scales):g} loses more than {1 - keep:.0%} of retain: nothing was changed")
    findings = {"scale": scale, "retain_accuracy": accuracies}
    return tuned.result(models={"model": at(scale)}, findings=findings, warnings=warnings)
