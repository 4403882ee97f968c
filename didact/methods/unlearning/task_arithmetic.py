"""Task arithmetic: subtract the weight change of fine-tuning on the forget set (Ilharco et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from didact.bounds import Positive, Share
from didact.evaluate import scaling
from didact.learn import specialists
from didact.learn.fit import Hook
from didact.methods.unlearning.survey import SPECIALIST, SURVEY
from didact.models import adapters, merge
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Result


@method("unlearning-survey.task-arithmetic", **SURVEY, gives=("models", "findings"), protocol=("forget",))
def task_arithmetic(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    *,
    scale: float | None = None,
    scales: tuple[Positive, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    keep: Share = 0.95,
    vector: Literal["task", "random"] = "task",
    fit: Fit = SPECIALIST,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Subtract the weight change of fine-tuning on the forget set (task vectors).

        tau = theta_tuned on the forget set - theta,   theta' = theta - scale tau

    Args:
        model: a causal or seq2seq model; left unchanged.
        forget: records whose completions must go.
        retain: records whose completions must stay; they choose the scale, nothing is trained on them.
        scale: lambda, negative to add instead; by default the largest of `scales` that keeps the retain accuracy.
        scales: scales to try, in rising order.
        keep: share of the initial model's token accuracy on retain that must be left.
        vector: task, or a random one of the same length in every tensor (the paper's control).
        fit: how the copy is fine-tuned on the forget set.
        hooks: called around every step of that.

    Raises:
        UserError: neither a scale nor retain records to choose it by; the loss became NaN.
    """
    tuned = specialists.tune(model, forget, fit, hooks, "task-vector")
    tau = merge.task_vector(adapters.merged(tuned.model) if fit.lora else tuned.model, model)
    if vector == "random":
        tau = merge.random_vector(tau, fit.seed)
    return scaling.at_scale(model, tuned, retain, lambda s: merge.add_vector(model, tau, -s), scale, scales, keep)
