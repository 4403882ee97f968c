"""EUL: an adapter close to the initial model on retain and far from it on forget (Chen and Yang 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from didact.bounds import NonNegative
from didact.data.streams import MicroBatch
from didact.learn import language, specialists
from didact.learn.fit import Hook, Term
from didact.methods.unlearning.survey import SURVEY
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result


@method("unlearning-survey.eul", **SURVEY, protocol=("forget",))
def eul(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    diverge: NonNegative = 1.0,
    keep: NonNegative = 1.0,
    task: NonNegative = 1.0,
    ascent: NonNegative = 0.1,
    fit: Fit = Fit(lr=5e-4, epochs=10, rows=8, schedule="constant", lora=8),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train only an adapter: close to the initial model on retain, far from it on forget (EUL).

        L = keep KL(start || model) + task CE on retain - diverge KL(start || model) - ascent CE on forget

    The paper inserts bottlenecks after each feed-forward layer; here the adapter is LoRA on every linear layer, which
    can be merged. Adapters of several requests fuse by `models.merge.regmean`.

    Args:
        model: a causal or seq2seq model; left unchanged.
        forget: records whose completions must go.
        retain: records whose completions must stay.
        diverge: weight of the divergence on forget.
        keep: alpha, weight of the divergence on retain.
        task: lambda, weight of the loss on retain.
        ascent: gamma, weight of the ascent on forget.
        fit: how to train; `lora` is the adapter's rank, 0 trains all weights.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        kl_weight, nll_weight = (-diverge, -ascent) if micro.stream == "forget" else (keep, task)
        kl = language.token_mean(student, micro, token_functions.kl_from, kl_weight, model)
        nll = language.cross_entropy(student, micro, weight=nll_weight)
        return {f"{micro.stream}_kl": kl, f"{micro.stream}_nll": nll}

    streams = specialists.streams(model, forget=forget, retain=retain)
    return language.train(model, streams, terms, fit, hooks=hooks, name="eul").result()
