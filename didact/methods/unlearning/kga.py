"""KGA: knowledge gap alignment (Wang et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from didact.bounds import NonNegative
from didact.data.streams import MicroBatch
from didact.evaluate import divergence
from didact.learn import language, specialists
from didact.learn.fit import Hook, Step, StopWhen, Term
from didact.methods.unlearning.survey import SURVEY, UNLEARN
from didact.models.model import Model, frozen
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result


@method("unlearning-survey.kga", **SURVEY, gives=("models", "findings"), protocol=("forget",))
def kga(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    unseen: Sequence[Demo],
    *,
    keep: NonNegative = 0.1,
    stop: NonNegative = 0.3,
    specialist_epochs: NonNegative = 10.0,
    specialist_lr: NonNegative = 5e-5,
    align: bool = True,
    fit: Fit = UNLEARN,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make forgotten records look as far from a specialist as unseen ones do (knowledge gap alignment).

        gap_new = mean on unseen of KL(start || A_unseen),   gap = mean on forget of KL(model || A_forget)
        L = |gap - gap_new| + keep KL(start || model) on retain,   until |gap - gap_new| < stop gap_new

    A_forget and A_unseen are the initial model (start) tuned on those records.

    Args:
        model: a causal or seq2seq model; left unchanged.
        forget: records whose completions must go.
        retain: records whose completions must stay.
        unseen: records of the same kind that no model has seen.
        keep: alpha, weight of the divergence on retain.
        stop: training ends once the gap is this close, as a share of gap_new.
        specialist_epochs: passes of each specialist over its records.
        specialist_lr: its learning rate.
        align: whether gap_new is the target; else KL(model || A_forget) is only maximised (a control).
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    specialist_fit = fit.replace(lr=specialist_lr, epochs=specialist_epochs, steps=None)
    forget_run = specialists.tune(model, forget, specialist_fit, (), "specialist-forget")
    unseen_run = specialists.tune(model, unseen, specialist_fit, (), "specialist-unseen")
    target_gap = divergence.mean_kl(model, unseen_run.model, specialists.rows(model, unseen, "unseen"))
    specialist = frozen(forget_run.model)

    def on_retain(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        return {"keep": language.token_mean(student, micro, token_functions.kl_from, keep, model)}

    def on_forget(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        gap = language.token_mean(student, micro, token_functions.kl_to, reference=specialist)
        count = len(micro.tokens.target)
        if not align:
            return {"gap": gap._replace(weight=-1.0)}
        # Coupled: the micro-batch has the whole stream, so this mean is the batch's.
        distance = (gap.sum / count - target_gap).abs()
        return {"align": Term(distance * micro.items, "forget.rows"), "gap": gap._replace(weight=0.0)}

    def aligned(step: Step) -> bool:
        return bool(step.log["align"] < stop * target_gap)

    streams = specialists.streams(model, forget=forget, retain=retain)
    trained = language.train(
        model, streams, {"forget": on_forget, "retain": on_retain}, fit, coupled=True,
        hooks=[*hooks, *([StopWhen(aligned)] if align else [])], name="kga",
    )  # fmt: skip
    gap = divergence.mean_kl(trained.model, specialist, specialists.rows(model, forget, "forget"))
    result = trained.result(findings={"gap": gap, "gap_unseen": target_gap})
    for run in (forget_run, unseen_run):
        result.cost.tokens += run.cost.tokens
        result.cost.flops += run.cost.flops
    return result
