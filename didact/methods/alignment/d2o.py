"""Distributional dispreference optimisation: away from bad answers, held by the model's own, no good ones needed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch
from didact.evaluate import collapse, protocols
from didact.evaluate.measures import Measure
from didact.infer import generate
from didact.infer.generate import SamplingConfig
from didact.learn import language, schedules
from didact.learn import rounds as loop
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.learn.rounds import Round
from didact.models import forward
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Judged, Messages, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "instance": {"loss": "instance"},
    "npo": {"loss": "npo"},
    "ga": {"loss": "ga"},
    "offline": {"draw": "offline"},
    "mean": {"normalize": "token", "beta": 10.0, "alpha": 10.0},  # the third-party code's mean per token, rescaled
}
LOOKED = 32  # prompts answered for the diagnostics


class RoundData(NamedTuple):
    """What a phase is taught: the negative and its anchors, each anchor's share of their mean, and how it was made."""

    items: list[ExampleGroup]
    share: Tensor
    facts: dict[str, float]


@method(
    "d2o",
    paper="Negating Negatives: Alignment without Human Positive Samples via Distributional Dispreference Optimization",
    year=2024,
    source="arXiv:2403.03419",
    gives=("models", "findings"),
    capabilities=("generate", "train"),
    presets=PRESETS,
)
def d2o(
    model: Model,
    judged: Sequence[Judged],
    *,
    loss: Literal["d2o", "instance", "npo", "ga"] = "d2o",
    k: int = 11,
    beta: float = 0.1,
    alpha: float = 0.1,
    draw: Literal["online", "mixed", "offline"] = "online",
    offline_steps: int = 200,
    every: int = 50,
    ref_minus: Literal["start", "latest"] = "start",
    ref_plus: Literal["start", "latest"] = "latest",
    steering: Sequence[str] = (),
    keep: Callable[[str, str], bool] | None = None,
    normalize: Literal["none", "token"] = "none",
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    fit: Fit = Fit(lr=1e-4, epochs=1, rows=4, schedule="constant", lora=8),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Stop a model from giving answers that were found bad, when nobody wrote good ones.

    K answers of the model's own to the same prompt, the anchors, hold it where it is while the bad answer y_l goes:

        z = (beta / K) sum_i [logp(y_i) - ref_minus(y_i)] - alpha [logp(y_l) - ref_plus(y_l)]
        L = -mean log sigmoid(z)

    logp is the SUM over an answer's tokens; both references are frozen, and z = 0 at the start. Anchors are averaged
    INSIDE the sigmoid. They are not assumed to be good. After `offline_steps` they are drawn anew from the
    model as it is then, every `every` steps, and the reference that is `latest` is that model too. Each such phase
    has the learning rate that `fit.schedule` gives at its first step, and begins the optimiser afresh; with LoRA the
    adapter is merged between phases.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        judged: answers with the label false; those labelled true are not taught, only looked at before and after.
        loss: d2o; `instance` averages outside the sigmoid (K pairs); `npo` and `ga` have no anchors.
        k: anchors of a prompt.
        beta: scale of the anchors' side; 0 leaves NPO.
        alpha: scale of the bad answer's side.
        draw: anchors from the model as it came (`offline`), as it is (`online`), or half and half (`mixed`), once
            the first phase is over.
        offline_steps: of the first phase.
        every: steps of a further phase.
        ref_minus: the reference of the anchors, which knows more of what is bad.
        ref_plus: the reference of the bad answers, which knows less of it.
        steering: instructions, one drawn at random and put before the prompt while an anchor is sampled, never in
            training.
        keep: `keep(prompt, answer)` says whether an anchor may be used; a prompt without any is left out.
        normalize: `token` takes means over tokens, not sums (not the paper's; scale beta and alpha by the length).
        max_new_tokens: of an answer, anchors and bad ones alike.
        temperature: at which anchors are sampled.
        top_p: nucleus they are sampled from.
        fit: how to train; `steps` are those of all phases together.
        hooks: called around every step.

    Returns:
        The model; `metrics` before and after: log-prob of the bad answers, nats per token on those labelled
        good, and what shows a collapse; `findings["phases"]`: anchors, how many were kept, how many were cut.

    Raises:
        UserError: no record is labelled false; no anchor was kept; a completion longer than the context; the loss
            became NaN.
    """
    if min(k, max_new_tokens, every) < 1 or offline_steps < 1 or temperature <= 0 or not 0 < top_p <= 1:
        raise UserError("d2o needs k, every, offline_steps, max_new_tokens and temperature above 0, top_p in (0, 1]")
    if beta < 0 or alpha <= 0:
        raise UserError(f"beta = {beta}, alpha = {alpha}: alpha above 0, beta 0 or more")
    bad, good = [j for j in judged if not j.label], [j for j in judged if j.label]
    if not bad:
        raise UserError("judged: no record is labelled false: d2o learns from bad answers only")
    rows = encode.rows(
        model.tokenizer, [(j.prompt, j.completion) for j in bad], model.kind, model.context, "judged (label false)"
    )
    negatives = [loop.as_sampled(r, model, max_new_tokens) for r in rows]
    anchored = loss in ("d2o", "instance")
    steps = fit.total_steps(len(bad))
    phases = _phases(steps, offline_steps, every) if anchored and draw != "offline" else [(0, steps)]
    how = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)

    def anchors(now: Round, index: Sequence[int]) -> list[list[TokenizedExample]]:
        """K rows of every prompt that were kept; half of a mixed phase's are the first model's."""
        old = k // 2 if draw == "mixed" and now.number else 0
        first = dataclasses.replace(now, model=model)
        made = [_drawn(source, name, n, index) for source, name, n in ((now, "now", k - old), (first, "first", old))]
        return [
            [
                TokenizedExample(negatives[i].prompt, c.tokens)
                for c in [*a, *b]
                if keep is None or keep(bad[i].prompt, c.text)
            ]
            for i, a, b in zip(index, *made, strict=True)
        ]

    def _drawn(now: Round, name: str, n: int, index: Sequence[int]) -> list[Any]:
        if not n:
            return [[] for _ in index]
        if not steering:
            return now.samples([negatives[i].prompt for i in index], n, how, name)
        told = np.random.default_rng([now.fit.seed, 94]).integers(len(steering), size=(len(index), n))
        asked = [_steered(bad[i].prompt, steering[t]) for i, row in zip(index, told, strict=True) for t in row]
        flat = now.samples([encode.prompt_ids(model.tokenizer, p, model.kind) for p in asked], 1, how, name)
        return [[c[0] for c in flat[at : at + n]] for at in range(0, len(flat), n)]

    def collect(now: Round) -> RoundData:
        first, length = phases[now.number]
        index = _turn(len(bad), first * fit.rows, length * fit.rows, fit.seed)
        if not anchored:
            return RoundData([(negatives[i],) for i in index], torch.empty(0), {"records": len(index)})
        found = anchors(now, index)
        kept = [(i, a) for i, a in zip(index, found, strict=True) if a]
        if not kept:
            raise UserError("d2o: `keep` left no anchor of any prompt")
        items = [(negatives[i], *a, *[a[-1]] * (k - len(a))) for i, a in kept]
        share = torch.tensor([[1 / len(a)] * len(a) + [0.0] * (k - len(a)) for _, a in kept], dtype=torch.float64)
        drawn, ends = [r for _, a in kept for r in a], generate.ends(model)
        facts = {
            "records": len(kept),
            "dropped": len(index) - len(kept),
            "kept": len(drawn) / (k * len(index)),
            "length": sum(len(r.completion) for r in drawn) / len(drawn),
            "ended": sum(r.completion[-1] in ends for r in drawn) / len(drawn),
        }
        return RoundData(items, share, facts)

    def train(now: Round, data: RoundData) -> TrainResult:
        first, length = phases[now.number]
        minus, plus = ({"start": model, "latest": now.model}[r] for r in (ref_minus, ref_plus))
        ref = language.reference_logp(plus, data.items).to(model.device)
        if minus is not plus and anchored:
            ref = torch.cat([ref[:, :1], language.reference_logp(minus, data.items).to(model.device)[:, 1:]], dim=1)
        share = data.share.to(ref)

        def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
            logp, count = language.sequence_logp(student, micro)
            was = ref[micro.index]
            if normalize == "token":
                logp, was = logp / count, was / count
            out = {
                loss: Term(_per_record(logp, was, share[micro.index] if anchored else None).sum(), "negatives.rows"),
                "logp_negative": Term(logp[:, 0].detach().sum(), "negatives.rows", 0.0),
                "negative": Term(alpha * (logp - was)[:, 0].detach().sum(), "negatives.rows", 0.0),
            }
            if anchored:
                moved = (share[micro.index] * (logp - was)[:, 1:].detach()).sum()
                out["anchors"] = Term(beta * moved, "negatives.rows", 0.0)
            return out

        def _per_record(logp: Tensor, was: Tensor, weight: Tensor | None) -> Tensor:
            if loss == "ga":
                return logp[:, 0]
            if loss == "npo":
                return preference.npo(logp[:, 0], was[:, 0], alpha)
            average: Literal["inside", "outside"] = "inside" if loss == "d2o" else "outside"
            return preference.d2o(logp[:, 1:], logp[:, 0], was[:, 1:], was[:, 0], beta, alpha, weight, average)

        how_long = now.fit.replace(steps=length)
        if len(phases) > 1:
            warm = fit.warmup_count(len(bad))
            rate = fit.lr * schedules.factor(fit.schedule, first, steps, warm if first else 0)
            how_long = how_long.replace(lr=rate, schedule="constant", warmup=0.0, warmup_steps=0 if first else warm)
        return language.train(
            now.model, {"negatives": data.items}, terms, how_long, hooks=[loop.NoDropout(), *hooks], name="train"
        )

    chosen: dict[str, Any] = {
        "loss": loss, "k": k, "beta": beta, "alpha": alpha, "draw": draw, "offline_steps": offline_steps,
        "every": every, "refs": [ref_minus, ref_plus], "steering": list(steering), "normalize": normalize,
        "keep": getattr(keep, "__qualname__", None), "sampling": [max_new_tokens, temperature, top_p],
        "data": hashlib.sha256(repr(negatives).encode()).hexdigest()[:16],
    }  # fmt: skip
    rounds_result = loop.run_rounds(model, len(phases), collect, train, fit, name="d2o", identity=chosen, hooks=hooks)
    looks = [_look(m, model, bad, good, fit.seed) for m in (model, rounds_result.model)]
    facts = [
        {"first_step": first, "steps": length, **m.facts}
        for (first, length), m in zip(phases, rounds_result.data, strict=True)
    ]
    return Result(
        models={"model": rounds_result.model},
        findings={"phases": facts},
        metrics=protocols.compare(*looks),
        history=rounds_result.history,
        cost=rounds_result.cost,
        warnings=[f"{len(good)} records labelled true: looked at, not taught"] if good else [],
    )


def _phases(steps: int, offline: int, every: int) -> list[tuple[int, int]]:
    """First step and length of every phase: `offline` steps, then `every` at a time."""
    starts = [0, *range(offline, steps, every)]
    return [(a, min(b, steps) - a) for a, b in zip(starts, [*starts[1:], steps], strict=True)]


def _turn(records: int, first: int, count: int, seed: int) -> list[int]:
    """The records whose turn it is, of those that are gone through in a new random order epoch by epoch."""
    epochs = range(first // records, (first + max(count, 1) - 1) // records + 1)
    order = np.concatenate([np.random.default_rng([seed, 93, e]).permutation(records) for e in epochs])
    at = first - epochs[0] * records
    return sorted({int(i) for i in order[at : at + count]})


def _steered(prompt: str, instruction: str) -> str:
    """A prompt with an instruction before it; of a conversation, before its first turn's text."""
    if isinstance(prompt, Messages):
        first, *rest = prompt.turns
        return Messages([{**first, "content": f"{instruction}\n\n{first['content']}"}, *rest])
    return f"{instruction}\n\n{prompt}"


def _look(model: Model, start: Model, bad: Sequence[Judged], good: Sequence[Judged], seed: int) -> dict[str, Measure]:
    """How likely bad and good answers are, and whether the model collapses."""

    def per_token(records: Sequence[Judged]) -> list[float]:
        pairs = [(j.prompt, j.completion) for j in records]
        total, count = forward.row_logp(model, encode.rows(model.tokenizer, pairs, model.kind, model.context))
        return list((-total / count).numpy())

    out = {"bad_nll": protocols.mean_measure(per_token(bad), "higher", "of the bad answers", "nats a token")}
    if good:
        out["good_nll"] = protocols.mean_measure(per_token(good), "lower", "of the good answers", "nats a token")
    prompts = list(dict.fromkeys(j.prompt for j in [*good, *bad]))[:LOOKED]
    return out | collapse.collapse(model, start, prompts, seed)
