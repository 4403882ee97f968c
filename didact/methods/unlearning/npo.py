"""Negative Preference Optimization (NPO) and every baseline of its paper, in one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor

from didact.bounds import NonNegative, Positive
from didact.data import encode, templates
from didact.data.streams import ExampleGroup, MicroBatch
from didact.learn import language, pairs
from didact.learn.fit import Hook, Term
from didact.models.forward import Tokenwise
from didact.models.model import Model
from didact.objectives import preference
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result

PRESETS: dict[str, dict[str, object]] = {
    "ga": {"loss": "ga", "regulariser": "none"},
    "graddiff": {"loss": "ga", "regulariser": "ce"},
    "ga-kl": {"loss": "ga", "regulariser": "kl"},
    "ga-forget-kl": {"loss": "ga", "regulariser": "kl-forget"},
    "idk": {"loss": "idk", "regulariser": "ce"},
    "dpo": {"loss": "dpo", "regulariser": "none"},
    "dpo-rt": {"loss": "dpo", "regulariser": "ce"},
    "dpo-kl": {"loss": "dpo", "regulariser": "kl"},
    "kto": {"loss": "kto", "regulariser": "none"},
    "kto-rt": {"loss": "kto", "regulariser": "ce"},
    "kto-sigmoid": {"loss": "kto-sigmoid", "regulariser": "none"},
    "kto-published": {"loss": "kto-published", "regulariser": "ce"},
    "npo": {"loss": "npo", "regulariser": "none"},
    "npo-rt": {"loss": "npo", "regulariser": "ce"},
    "npo-kl": {"loss": "npo", "regulariser": "kl"},
    "simnpo": {"loss": "simnpo", "regulariser": "ce", "beta": 4.5, "forget_weight": 0.125},
    "wga": {"loss": "wga", "regulariser": "ce", "beta": 1.0},
    "undial": {"loss": "undial", "regulariser": "ce", "beta": 10.0, "fit.lr": 1e-4},
}
# Rows of a forget record that each loss needs: f the answer, i the alternate answer, m another record's answer.
ROWS = {"idk": "i", "dpo": "fi", "kto": "fi", "kto-sigmoid": "fi", "kto-published": "fim"}
TOKENWISE = ("idk", "wga", "undial")  # losses that are means over tokens; ga too, unless reduction is sum


@method(
    "npo",
    paper="Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
    year=2024,
    source="arXiv:2404.05868",
    protocol=("forget",),
    presets=PRESETS,
)
def npo(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    *,
    loss: Literal["npo", "ga", "idk", "dpo", "kto", "kto-sigmoid", "kto-published", "simnpo", "wga", "undial"] = "npo",
    regulariser: Literal["ce", "kl", "kl-forget", "none"] = "ce",
    beta: Positive = 0.1,
    delta: NonNegative = 0.0,
    forget_weight: NonNegative = 1.0,
    retain_weight: NonNegative = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    kl_direction: Literal["from_reference", "to_reference"] = "from_reference",
    kl_over: Literal["all", "completion"] = "all",
    fit: Fit = Fit(lr=1e-5, epochs=10, rows=32, warmup=1.0, weight_decay=0.01),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make a model forget some answers and keep the rest.

    Gradient ascent on the forget answers wrecks a model, because its loss has no lower bound. NPO bounds it: with logp
    the SUM over answer tokens and pi_ref the initial model,

        L = -(2/beta) mean log sigmoid(-beta (logp - logp_ref)) + retain_weight R

    whose gradient is ascent's times W = 2 sigmoid(beta (logp - logp_ref)): 1 at the start, 0 once an answer is
    forgotten. R keeps the retain records: their mean next-token loss (`ce`), or the divergence from the initial model
    on them (`kl`). Each step sees `fit.rows` records to forget and as many to retain, paired at random; an epoch is a
    pass over the forget set.

    Args:
        model: a causal or seq2seq model; left unchanged, a trained copy is returned.
        forget: records whose completions must go; `alternate` is what to say instead (idk, dpo, kto).
        retain: records whose completions must stay; nearly always needed.
        loss: loss on the forget answers; the others are the paper's baselines and later relatives.
        regulariser: what protects the rest: ce, kl (both on retain), kl-forget (on the forget set), none.
        beta: inverse temperature; as it goes to 0 NPO becomes gradient ascent, large values stop sooner. For wga the
            power of the token probability, for undial how far the label's logit is lowered.
        delta: SimNPO's margin, in nats per token.
        forget_weight: weight of the forget loss.
        retain_weight: weight of R.
        reduction: for ga: the official code's mean over tokens, or the sum per answer (NPO's limit).
        kl_direction: from_reference is KL(ref || model), the official code; to_reference the paper's.
        kl_over: all tokens of a record (the official code, less its padding), or its completion's.
        fit: how to train; the defaults are the paper's for a 7B model (small models need 1e-4 and more).
        hooks: called around every step, `every(n, look)` for trajectories.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    active = regulariser if retain or regulariser == "kl-forget" else "none"
    groups = _groups(model, forget, ROWS.get(loss, "f"), fit.seed)
    streams: dict[str, list[ExampleGroup]] = {"forget": groups}
    if retain and active in ("ce", "kl"):
        answers = [(r.prompt, r.completion) for r in retain]
        streams["retain"] = language.single(encode.rows(model.tokenizer, answers, model.kind, model.context, "retain"))
    divergence = token_functions.kl_from if kl_direction == "from_reference" else token_functions.kl_to
    penalty = partial(
        language.token_mean, fn=divergence, weight=retain_weight, reference=model, everywhere=kl_over == "all"
    )

    def on_retain(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if active == "kl":
            return {"retain": penalty(student, micro)}
        per = "tokens" if loss == "idk" else "retain.tokens"  # the official code mixes both in one batch
        return {"retain": language.cross_entropy(student, micro, per, retain_weight)}

    def by_token(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if loss in ("idk", "ga"):
            per, weight = ("tokens", forget_weight) if loss == "idk" else (None, -forget_weight)
            return {"forget": language.cross_entropy(student, micro, per, weight)}
        fn: Tokenwise = partial(token_functions.weighted_ascent if loss == "wga" else token_functions.undial, beta=beta)
        reference = model if loss == "undial" else None
        return {"forget": language.token_mean(student, micro, fn, forget_weight, reference)}

    def by_record(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
        """The loss of each forget record, `(B,)`; columns are answer, refusal, mismatch."""
        if loss == "ga":
            return logp[:, 0]
        if loss == "simnpo":  # takes means over tokens
            return preference.simnpo(logp[:, 0], beta, delta)
        if loss == "npo":
            return preference.npo(logp[:, 0], ref[:, 0], beta)
        if loss == "dpo":
            return (2 / beta) * preference.dpo(logp[:, 1], logp[:, 0], ref[:, 1], ref[:, 0], beta)
        if loss == "kto-published":
            z = (logp[:, 2] - ref[:, 2]).detach().mean().clamp(min=0)
            refusal_loss = preference.kto(logp[:, 1], ref[:, 1], z, True, beta)
            return refusal_loss + preference.kto(logp[:, 0], ref[:, 0], z, False, beta)
        z = (logp[:, 1] - ref[:, 1]).detach().mean()
        return preference.kto_npo(logp[:, 0], ref[:, 0], z, beta, "sigmoid" if loss == "kto-sigmoid" else "logsigmoid")

    def weights(logp: Tensor, ref: Tensor, index: Tensor) -> Mapping[str, Tensor]:
        return {"mean_W": preference.npo_weight(logp[:, 0], ref[:, 0], beta)}

    if loss in TOKENWISE or (loss == "ga" and reduction == "mean"):
        on_forget: language.Loss = by_token
    elif loss in ("ga", "simnpo"):
        on_forget = pairs.terms(by_record, name="forget", weight=forget_weight, mean=loss == "simnpo")
    else:
        ref = pairs.reference_of(model, groups, model)
        on_forget = pairs.terms(by_record, ref, name="forget", weight=forget_weight, log=weights)

    def with_penalty(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        return {**on_forget(student, micro), "kl": penalty(student, micro)}

    losses = {"forget": with_penalty if active == "kl-forget" else on_forget, "retain": on_retain}
    trained = language.train(model, streams, losses, fit, coupled=loss.startswith("kto"), hooks=hooks, name="npo")
    unprotected = active == "none" != regulariser
    warnings = ["no retain records: nothing protects what the model should keep"] if unprotected else []
    return trained.result(warnings=warnings)


def _groups(model: Model, forget: Sequence[Demo], parts: str, seed: int) -> list[ExampleGroup]:
    """Rows of each forget record: `f` its answer, `i` the alternate answer, `m` the next record's answer."""
    answers = {
        "f": [r.completion for r in forget],
        "i": templates.with_alternates(forget, seed=seed),
        "m": [r.completion for r in [*forget[1:], *forget[:1]]],
    }
    prompts = [r.prompt for r in forget]
    columns = [
        encode.rows(model.tokenizer, zip(prompts, answers[p], strict=True), model.kind, model.context, "forget")
        for p in parts
    ]
    return list(zip(*columns, strict=True))
