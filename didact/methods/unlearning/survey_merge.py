"""Unlearning by arithmetic on weights: nothing is trained on the model that is given out, only beside it.

The survey's second class: task vectors, adapters negated, and the deficiency of an anti-expert taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from didact.data import encode
from didact.data.streams import MicroBatch
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.models import forward, merge
from didact.models.model import Model, copy_of
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

SURVEY: dict[str, Any] = {
    "paper": "Knowledge Unlearning for LLMs: Tasks, Methods, and Challenges",
    "year": 2023,
    "source": "arXiv:2311.15766",
}
SPECIALIST = Fit(lr=1e-5, epochs=5, rows=16, schedule="constant")
ADAPTER = Fit(lr=2e-4, epochs=10, rows=16, schedule="constant", lora=8)


@method("unlearning-survey.task-arithmetic", **SURVEY, gives=("models", "findings"), protocol="forget")
def task_arithmetic(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    *,
    scale: float | None = None,
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    keep: float = 0.95,
    vector: Literal["task", "random"] = "task",
    fit: Fit = SPECIALIST,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Subtract what fine-tuning on the forget set adds (task vectors).

        tau = theta_tuned on the forget set - theta,   theta' = theta - scale tau

    Args:
        model: a causal or seq2seq model; it stays as it was.
        forget: records whose completions must go.
        retain: records whose completions must stay; they choose the scale, nothing is trained on them.
        scale: lambda; by default the largest of `scales` that keeps the retain accuracy.
        scales: those tried, in rising order.
        keep: share of the start's token accuracy on retain that must be left.
        vector: task, or a random one as long in every tensor (the paper's control).
        fit: how the copy is fine-tuned on the forget set.
        hooks: called around every step of that.

    Raises:
        UserError: neither a scale nor retain records to choose it by; the loss became NaN.
    """
    tuned = tuned_on(model, forget, fit, hooks, "task-vector")
    tau = merge.task_vector(merge.merged(tuned.model) if fit.lora else tuned.model, model)
    if vector == "random":
        tau = merge.random_vector(tau, fit.seed)
    return _scaled(model, tuned, retain, lambda s: merge.moved(model, tau, -s), scale, scales, keep)


@method("unlearning-survey.negated-adapter", **SURVEY, gives=("models", "findings"), protocol="forget")
def negated_adapter(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    *,
    adapter: Literal["lora", "ia3"] = "lora",
    scale: float | None = None,
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    keep: float = 0.95,
    fit: Fit = ADAPTER,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train an adapter on the forget set and apply its negative (PEM arithmetic).

    LoRA's product B A counts -scale times, which scales one factor only; (IA)^3's vector l becomes
    1 - scale (l - 1). The result is merged: a plain model.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        forget: records whose completions must go.
        retain: records whose completions must stay; they choose the scale.
        adapter: lora or ia3.
        scale: lambda; by default the largest of `scales` that keeps the retain accuracy.
        scales: those tried, in rising order.
        keep: share of the start's token accuracy on retain that must be left.
        fit: how the adapter is trained; `lora` is its rank.
        hooks: called around every step of that.

    Raises:
        UserError: neither a scale nor retain records; a LoRA of rank 0; the loss became NaN.
    """
    if adapter == "lora" and not fit.lora:
        raise UserError("lora = 0: a negated adapter needs a rank of 1 or more")
    start = model if adapter == "lora" else merge.ia3(copy_of(model))
    how = fit if adapter == "lora" else fit.replace(lora=0)
    tuned = tuned_on(start, forget, how, hooks, "adapter")
    return _scaled(model, tuned, retain, lambda s: merge.merged(merge.weighed(tuned.model, -s)), scale, scales, keep)


@method("unlearning-survey.ext-sub", **SURVEY, gives=("models", "findings"), protocol="forget")
def ext_sub(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    scale: float | None = None,
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    keep: float = 0.95,
    fit: Fit = SPECIALIST,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Subtract only what an anti-expert learnt and an expert did not (Ext-Sub).

        u = v+/|v+| + v-/|v-|,   Ext(v-) = v- - (v-.u)/(u.u) u,   theta' = theta+ - scale Ext(v-)

    for every weight vector of the expert (tuned on retain, v+ = theta+ - theta) and the anti-expert (on forget, v-):
    what both share is competence and stays.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        forget: records whose completions must go.
        retain: records whose completions must stay; the expert is tuned on them, and they choose the scale.
        scale: lambda; by default the largest of `scales` that keeps the retain accuracy.
        scales: those tried, in rising order.
        keep: share of the start's token accuracy on retain that must be left.
        fit: how the expert and the anti-expert are tuned.
        hooks: called around every step of the anti-expert.

    Raises:
        UserError: the loss became NaN.
    """
    bad, good = tuned_on(model, forget, fit, hooks, "anti-expert"), tuned_on(model, retain, fit, (), "expert")
    experts = [merge.merged(t.model) if fit.lora else t.model for t in (bad, good)]
    vectors = [merge.task_vector(expert, model) for expert in experts]
    extracted = merge.deficiency(*vectors)
    result = _scaled(model, bad, retain, lambda s: merge.moved(experts[1], extracted, -s), scale, scales, keep)
    result.cost.tokens += good.cost.tokens
    result.cost.flops += good.cost.flops
    return result


def tuned_on(model: Model, demos: Sequence[Demo], fit: Fit, hooks: Sequence[Hook], name: str) -> TrainResult:
    """A copy fine-tuned on completions: the specialist whose weights are then computed with."""
    rows = encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], model.kind, model.context, name)

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        return {"nll": language.cross_entropy(student, micro)}

    return language.train(
        model, {name: language.single(rows)}, terms, fit, hooks=hooks, name=name, identity={"survey": name}
    )


def accuracy(model: Model, demos: Sequence[Demo]) -> float:
    """Share of completion tokens that are the first choice."""
    rows = encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], model.kind, model.context)
    right = [v["correct"] for _, _, v in forward.score(model, rows, {"correct": token_functions.correct})]
    return sum(float(r.sum()) for r in right) / sum(len(r) for r in right)


def _scaled(
    model: Model,
    tuned: TrainResult,
    retain: Sequence[Demo] | None,
    at: Callable[[float], Model],
    scale: float | None,
    scales: Sequence[float],
    keep: float,
) -> Result:
    """The model at the given scale, or at the largest that keeps `keep` of the retain accuracy."""
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
    return Result(
        models={"model": at(scale)}, findings=findings, history=tuned.history, cost=tuned.cost, warnings=warnings
    )
