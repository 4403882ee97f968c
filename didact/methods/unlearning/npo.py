"""Negative Preference Optimization and every baseline of its paper, as one composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from didact.data import encode, templates
from didact.data.streams import ExampleGroup, MicroBatch
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models.model import Model
from didact.objectives import preference
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

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
# What each loss reads of a forget record: the answer, what to say instead, another record's answer.
ROWS = {"idk": "i", "dpo": "fi", "kto": "fi", "kto-sigmoid": "fi", "kto-published": "fim"}


@method(
    "npo",
    paper="Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
    year=2024,
    source="arXiv:2404.05868",
    protocol="forget",
    presets=PRESETS,
)
def npo(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    *,
    loss: Literal["npo", "ga", "idk", "dpo", "kto", "kto-sigmoid", "kto-published", "simnpo", "wga", "undial"] = "npo",
    regulariser: Literal["ce", "kl", "kl-forget", "none"] = "ce",
    beta: float = 0.1,
    delta: float = 0.0,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    kl_direction: Literal["from_reference", "to_reference"] = "from_reference",
    kl_over: Literal["all", "completion"] = "all",
    fit: Fit = Fit(lr=1e-5, epochs=10, rows=32, warmup=1.0, weight_decay=0.01),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make a model forget some answers and keep the rest.

    Gradient ascent on what must be forgotten wrecks a model, because its loss has no lower bound.
    NPO bounds it: with logp the SUM over answer tokens and pi_ref the model as it came,

        L = -(2/beta) mean log sigmoid(-beta (logp - logp_ref)) + retain_weight R

    whose gradient is ascent's times W = 2 sigmoid(beta (logp - logp_ref)): 1 at the start, 0 once an
    answer is forgotten. R keeps the retain records: their mean next-token loss (`ce`), or the
    divergence from the start model on them (`kl`). Each step sees `fit.rows` records to forget and
    as many to retain, paired at random; an epoch is a pass over the forget set.

    Args:
        model: a causal or seq2seq model; it stays as it was, a taught copy is returned.
        forget: records whose completions must go; `alternate` is what to say instead (idk, dpo, kto).
        retain: records whose completions must stay; nearly always needed.
        loss: what lowers the forget answers; the others are the paper's baselines and later relatives.
        regulariser: what protects the rest: ce, kl (both on retain), kl-forget (on the forget set), none.
        beta: inverse temperature; to 0 NPO becomes gradient ascent, large values stop sooner. For wga
            the power of the token probability, for undial how far the label's logit is lowered.
        delta: SimNPO's margin, in nats per token.
        forget_weight: weight of the forget loss.
        retain_weight: weight of R.
        reduction: of ga: the official code's mean over tokens, or the sum per answer (NPO's limit).
        kl_direction: from_reference is KL(ref || model), the official code; to_reference the paper's.
        kl_over: all tokens of a record (the official code, less its padding), or its completion's.
        fit: how to train; the defaults are the paper's for a 7B model (small models need 1e-4 and more).
        hooks: called around every step, `every(n, look)` for trajectories.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    if not beta > 0:
        raise UserError(f"beta = {beta}: must be above 0")
    kept = regulariser if retain or regulariser == "kl-forget" else "none"
    parts = ROWS.get(loss, "f")
    streams: dict[str, list[ExampleGroup]] = {"forget": _items(model, forget, parts, fit.seed)}
    if retain and kept in ("ce", "kl"):
        pairs = [(r.prompt, r.completion) for r in retain]
        streams["retain"] = language.single(encode.rows(model.tokenizer, pairs, model.kind, model.context, "retain"))
    needs_reference = loss in ("npo", "dpo", "kto", "kto-sigmoid", "kto-published")
    ref = language.reference_logp(model, streams["forget"]).to(model.device) if needs_reference else None
    divergence = token_functions.kl_from if kl_direction == "from_reference" else token_functions.kl_to
    penalty = partial(
        language.token_mean, fn=divergence, weight=retain_weight, reference=model, everywhere=kl_over == "all"
    )

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream == "retain":
            if kept == "kl":
                return {"retain": penalty(student, micro)}
            per = "tokens" if loss == "idk" else "retain.tokens"  # the code's one mixed batch of refusals and retain
            return {"retain": language.cross_entropy(student, micro, per, retain_weight)}
        out = _forget_terms(student, micro, ref[micro.index] if ref is not None else None)
        return out | ({"kl": penalty(student, micro)} if kept == "kl-forget" else {})

    def _forget_terms(student: Model, micro: MicroBatch, ref_logp: Tensor | None) -> dict[str, Term]:
        if loss == "idk":
            return {"forget": language.cross_entropy(student, micro, "tokens", forget_weight)}
        if loss == "ga" and reduction == "mean":
            return {"forget": language.cross_entropy(student, micro, weight=-forget_weight)}
        if loss == "wga":
            ascent = partial(token_functions.weighted_ascent, beta=beta)
            return {"forget": language.token_mean(student, micro, ascent, forget_weight)}
        if loss == "undial":
            lowered = partial(token_functions.undial, beta=beta)
            return {"forget": language.token_mean(student, micro, lowered, forget_weight, reference=model)}
        logp, count = language.sequence_logp(student, micro)
        per_record, weight = _per_record(logp, count, ref_logp)
        out = {"forget": Term(per_record.sum(), "forget.rows", forget_weight)}
        return out if weight is None else out | {"mean_W": Term(weight.sum(), "forget.rows", 0.0)}

    def _per_record(logp: Tensor, count: Tensor, ref_logp: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The loss of each forget record, and W where the loss has it; columns are answer, refusal, mismatch."""
        if ref_logp is None:
            return (logp[:, 0] if loss == "ga" else preference.simnpo(logp[:, 0] / count[:, 0], beta, delta)), None
        weight = preference.npo_weight(logp[:, 0], ref_logp[:, 0], beta).detach()
        if loss == "npo":
            return preference.npo(logp[:, 0], ref_logp[:, 0], beta), weight
        if loss == "dpo":
            pair = preference.dpo(logp[:, 1], logp[:, 0], ref_logp[:, 1], ref_logp[:, 0], beta)
            return (2 / beta) * pair, weight
        if loss == "kto-published":
            z = (logp[:, 2] - ref_logp[:, 2]).detach().mean().clamp(min=0)
            good = preference.kto(logp[:, 1], ref_logp[:, 1], z, True, beta)
            return good + preference.kto(logp[:, 0], ref_logp[:, 0], z, False, beta), weight
        z = (logp[:, 1] - ref_logp[:, 1]).detach().mean()
        squash = "sigmoid" if loss == "kto-sigmoid" else "logsigmoid"
        return preference.kto_npo(logp[:, 0], ref_logp[:, 0], z, beta, squash), weight

    chosen: dict[str, Any] = {"loss": loss, "regulariser": kept, "beta": beta, "delta": delta, "reduction": reduction}
    chosen |= {"weights": [forget_weight, retain_weight], "kl": [kl_direction, kl_over]}
    taught = language.train(
        model, streams, terms, fit, coupled=loss.startswith("kto"), hooks=hooks, name="npo", identity=chosen
    )
    missing = kept == "none" and regulariser != "none"
    warnings = ["no retain records: nothing protects what the model should keep"] if missing else []
    return Result(models={"model": taught.model}, history=taught.history, cost=taught.cost, warnings=warnings)


def _items(model: Model, forget: Sequence[Demo], parts: str, seed: int) -> list[ExampleGroup]:
    """Rows of each forget record: `f` its answer, `i` what to say instead, `m` the next record's answer."""
    instead = templates.with_alternates(forget, seed=seed)
    shifted = [*forget[1:], *forget[:1]]
    answer = {
        "f": [r.completion for r in forget],
        "i": instead,
        "m": [r.completion for r in shifted],
    }
    columns = [
        encode.rows(
            model.tokenizer,
            zip((r.prompt for r in forget), answer[p], strict=True),
            model.kind,
            model.context,
            "forget",
        )
        for p in parts
    ]
    return list(zip(*columns, strict=True))
