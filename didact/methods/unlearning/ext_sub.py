"""Ext-Sub: subtract only what an anti-expert learnt and an expert did not (Hu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from didact.bounds import Positive, Share
from didact.evaluate import scaling
from didact.learn import specialists
from didact.learn.fit import Hook
from didact.methods.unlearning.survey import SPECIALIST, SURVEY
from didact.models import adapters, merge
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Result


@method("unlearning-survey.ext-sub", **SURVEY, gives=("models", "findings"), protocol=("forget",))
def ext_sub(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    scale: float | None = None,
    scales: tuple[Positive, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    keep: Share = 0.95,
    fit: Fit = SPECIALIST,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Subtract only what an anti-expert learnt and an expert did not (Ext-Sub).

        u = v+/|v+| + v-/|v-|,   Ext(v-) = v- - (v-.u)/(u.u) u,   theta' = theta+ - scale Ext(v-)

    for every weight vector of the expert (tuned on retain, v+ = theta+ - theta) and the anti-expert (on forget, v-):
    what both share is competence and stays.

    Args:
        model: a causal or seq2seq model; left unchanged.
        forget: records whose completions must go.
        retain: records whose completions must stay; the expert is tuned on them, and they choose the scale.
        scale: lambda, negative to add instead; by default the largest of `scales` that keeps the retain accuracy.
        scales: scales to try, in rising order.
        keep: share of the initial model's token accuracy on retain that must be left.
        fit: how the expert and the anti-expert are tuned.
        hooks: called around every step of the anti-expert.

    Raises:
        UserError: the loss became NaN.
    """
    anti_expert = specialists.tune(model, forget, fit, hooks, "anti-expert")
    expert_run = specialists.tune(model, retain, fit, (), "expert")
    experts = [adapters.merged(t.model) if fit.lora else t.model for t in (anti_expert, expert_run)]
    vectors = [merge.task_vector(expert, model) for expert in experts]
    extracted = merge.deficiency(*vectors)
    result = scaling.at_scale(
        model, anti_expert, retain, lambda s: merge.add_vector(experts[1], extracted, -s), scale, scales, keep
    )
    result.cost.tokens += expert_run.cost.tokens
    result.cost.flops += expert_run.cost.flops
    return result
