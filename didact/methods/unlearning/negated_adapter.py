"""Negated adapters: train an adapter on the forget set and apply it with the opposite sign (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from didact.bounds import Positive, Share
from didact.evaluate import scaling
from didact.learn import specialists
from didact.learn.fit import Hook
from didact.methods.unlearning.survey import SURVEY
from didact.models import adapters, merge
from didact.models.model import Model, copy_of
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

ADAPTER = Fit(lr=2e-4, epochs=10, rows=16, schedule="constant", lora=8)


@method("unlearning-survey.negated-adapter", **SURVEY, gives=("models", "findings"), protocol=("forget",))
def negated_adapter(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    *,
    adapter: Literal["lora", "ia3"] = "lora",
    scale: float | None = None,
    scales: tuple[Positive, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    keep: Share = 0.95,
    fit: Fit = ADAPTER,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train an adapter on the forget set and apply its negative (PEM arithmetic).

    LoRA's product B A counts -scale times, which scales one factor only; (IA)^3's vector l becomes 1 - scale (l - 1).
    The result is merged: a plain model.

    Args:
        model: a causal or seq2seq model; left unchanged.
        forget: records whose completions must go.
        retain: records whose completions must stay; they choose the scale.
        adapter: lora or ia3.
        scale: lambda, negative to add instead; by default the largest of `scales` that keeps the retain accuracy.
        scales: scales to try, in rising order.
        keep: share of the initial model's token accuracy on retain that must be left.
        fit: how the adapter is trained; `lora` is its rank.
        hooks: called around every step of that.

    Raises:
        UserError: neither a scale nor retain records; a LoRA of rank 0; the loss became NaN.
    """
    if adapter == "lora" and not fit.lora:
        raise UserError("lora = 0: a negated adapter needs a rank of 1 or more")
    start = model if adapter == "lora" else merge.ia3(copy_of(model))
    adapter_fit = fit if adapter == "lora" else fit.replace(lora=0)
    tuned = specialists.tune(start, forget, adapter_fit, hooks, "adapter", keep=adapter == "ia3")

    def negated(s: float) -> Model:
        return adapters.merged(merge.scale_adapter(tuned.model, -s))

    return scaling.at_scale(model, tuned, retain, negated, scale, scales, keep)
