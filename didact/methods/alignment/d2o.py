"""Distributional dispreference optimisation (D2O): learn from bad answers only, anchored by the model's own answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from didact.bounds import Count, NonNegative, Positive, PositiveShare
from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.infer import generate
from didact.infer.generate import SamplingConfig
from didact.learn import language, pairs
from didact.learn import rounds as round_loop
from didact.learn.fit import Hook, NoDropout
from didact.learn.language import TrainResult
from didact.learn.rounds import Round, RoundData
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Judged, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "instance": {"loss": "instance"},
    "npo": {"loss": "npo"},
    "ga": {"loss": "ga"},
    "offline": {"draw": "offline"},
    "mean": {"normalize": "token", "beta": 10.0, "alpha": 10.0},  # the third-party code's mean per token, rescaled
}


@method(
    "d2o",
    paper="Negating Negatives: Alignment without Human Positive Samples via Distributional Dispreference Optimization",
    year=2024,
    source="arXiv:2403.03419",
    gives=("models", "findings"),
    capabilities=("generate", "train"),
    protocol=("judged", "collapse"),
    presets=PRESETS,
)
def d2o(
    model: Model,
    judged: Sequence[Judged],
    *,
    loss: Literal["d2o", "instance", "npo", "ga"] = "d2o",
    k: Count = 11,
    beta: NonNegative = 0.1,
    alpha: Positive = 0.1,
    draw: Literal["online", "mixed", "offline"] = "online",
    offline_steps: Count = 200,
    every: Count = 50,
    ref_minus: Literal["start", "latest"] = "start",
    ref_plus: Literal["start", "latest"] = "latest",
    steering: Sequence[str] = (),
    keep: Callable[[str, str], bool] | None = None,
    normalize: Literal["none", "token"] = "none",
    max_new_tokens: Count = 256,
    temperature: Positive = 1.0,
    top_p: PositiveShare = 1.0,
    fit: Fit = Fit(lr=1e-4, epochs=1, rows=4, schedule="constant", lora=8),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model away from answers labelled bad, without any good answers.

    K answers sampled from the model itself, the anchors, keep it in place while the bad answer y_l is pushed down:

        z = (beta / K) sum_i [logp(y_i) - ref_minus(y_i)] - alpha [logp(y_l) - ref_plus(y_l)]
        L = -mean log sigmoid(z)

    logp is the SUM over an answer's tokens; both references are frozen, and z = 0 at the start. Anchors are averaged
    INSIDE the sigmoid and need not be good. After the first `offline_steps` steps, and then every `every` steps, a new
    phase begins: anchors are sampled from the current model, which also becomes the reference set to `latest`. Each
    phase has the learning rate that `fit.schedule` gives at its first step, and a fresh optimiser; with LoRA the
    adapter is merged between phases.

    Args:
        model: a causal or seq2seq model; left unchanged.
        judged: answers with the label false; those labelled true are not trained on.
        loss: d2o; `instance` averages outside the sigmoid (K pairs); `npo` and `ga` have no anchors.
        k: anchors per prompt.
        beta: scale of the anchor term; 0 leaves NPO.
        alpha: scale of the bad answer's term.
        draw: anchors of later phases: of the initial model (`offline`), the current one (`online`), or half each.
        offline_steps: steps of the first phase.
        every: steps of each later phase.
        ref_minus: reference for the anchors, meant to be the more harmful one.
        ref_plus: reference for the bad answers, meant to be the less harmful one.
        steering: instructions; a random one precedes the prompt while an anchor is sampled, not in training.
        keep: `keep(prompt, answer)` says whether an anchor may be used; a prompt without any is left out.
        normalize: `token` takes means over tokens, not sums (not the paper's; scale beta and alpha by the length).
        max_new_tokens: maximum length of an answer, anchors and bad ones alike.
        temperature: sampling temperature of the anchors.
        top_p: nucleus from which anchors are sampled.
        fit: how to train; `steps` counts all phases together.
        hooks: called around every step.

    Returns:
        The model; `findings["phases"]`: records, share of anchors kept, their mean length, share that reached the end
        token. The history has the log-prob of the bad answers and both terms of z.

    Raises:
        UserError: no record is labelled false; no anchor was kept; an answer longer than the context; NaN in the loss.
    """
    bad = [j for j in judged if not j.label]
    if not bad:
        raise UserError("judged: no record is labelled false: d2o learns from bad answers only")
    answers = [(j.prompt, j.completion) for j in bad]
    rows = encode.rows(model.tokenizer, answers, model.kind, model.context, "judged (label false)")
    negatives = [round_loop.as_sampled(r, model, max_new_tokens) for r in rows]
    anchored = loss in ("d2o", "instance")
    steps = fit.total_steps(len(bad))
    phases = round_loop.phases(steps, offline_steps if anchored and draw != "offline" else steps, every)
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)

    def anchors(now: Round, index: Sequence[int]) -> list[list[TokenizedExample]]:
        """Sample K anchors per prompt and drop unusable ones; in a mixed phase the initial model samples half."""
        old = k // 2 if draw == "mixed" and now.number else 0
        sampled = []
        for source, name, n in ((now, "now", k - old), (dataclasses.replace(now, model=model), "first", old)):
            if n and steering:
                sampled.append(source.steered([bad[i].prompt for i in index], steering, n, sampling, name))
            elif n:
                sampled.append(source.samples([negatives[i].prompt for i in index], n, sampling, name))
        groups = [(negatives[i].prompt, i, itertools.chain(*row)) for i, *row in zip(index, *sampled, strict=True)]
        accepts = keep or (lambda prompt, answer: True)
        return [[TokenizedExample(p, c.tokens) for c in row if accepts(bad[i].prompt, c.text)] for p, i, row in groups]

    def collect(now: Round) -> RoundData:
        first, length = phases[now.number]
        index = sorted(set(round_loop.in_passes(first * fit.rows, length * fit.rows, len(bad), (fit.seed, 93))))
        if not anchored:
            return RoundData([(negatives[i],) for i in index], {"records": len(index)})
        usable = [(i, a) for i, a in zip(index, anchors(now, index), strict=True) if a]
        if not usable:
            raise UserError("d2o: `keep` left no anchor of any prompt")
        sampled = [row for _, a in usable for row in a]
        counts = {"records": len(usable), "dropped": len(index) - len(usable), "kept": len(sampled) / (k * len(index))}
        share = torch.tensor([[1 / len(a)] * len(a) + [0.0] * (k - len(a)) for _, a in usable], dtype=torch.float64)
        items = [(negatives[i], *a, *[a[-1]] * (k - len(a))) for i, a in usable]
        return RoundData(
            items, counts | round_loop.length_stats(sampled, generate.ends(model)), columns={"share": share}
        )

    def train(now: Round, data: RoundData) -> TrainResult:
        minus, plus = ({"start": model, "latest": now.model}[r] for r in (ref_minus, ref_plus))
        ref = language.reference_logp(plus, data.items)
        if minus is not plus and anchored:
            ref = torch.cat([ref[:, :1], language.reference_logp(minus, data.items)[:, 1:]], dim=1)
        share = data.columns.get("share", torch.empty(0)).to(model.device, ref.dtype)

        def record_loss(logp: Tensor, was: Tensor, index: Tensor) -> Tensor:
            if not anchored:
                return preference.npo(logp[:, 0], was[:, 0], alpha) if loss == "npo" else logp[:, 0]
            average: Literal["inside", "outside"] = "inside" if loss == "d2o" else "outside"
            return preference.d2o(logp[:, 1:], logp[:, 0], was[:, 1:], was[:, 0], beta, alpha, share[index], average)

        def log(logp: Tensor, was: Tensor, index: Tensor) -> Mapping[str, Tensor]:
            log_ratio = logp - was
            sides = {"logp_negative": logp[:, 0], "negative": alpha * log_ratio[:, 0].sum()}
            return sides | ({"anchors": beta * (share[index] * log_ratio[:, 1:]).sum()} if anchored else {})

        return pairs.train(
            now.model, data.items, record_loss, round_loop.phase_fit(now, fit, phases, fit.warmup_count(len(bad))),
            reference=ref, mean=normalize == "token", log=log, hooks=[NoDropout(), *hooks], loss_name=loss,
            stream="negatives",
        )  # fmt: skip

    outcome = round_loop.run_rounds(model, len(phases), collect, train, fit, name="d2o", hooks=hooks)
    stats = [{"first_step": start, "steps": n, **d.stats} for (start, n), d in zip(phases, outcome.data, strict=True)]
    unused = len(judged) - len(bad)
    warnings = [f"{unused} records labelled true are not trained on"] if unused else []
    return outcome.result(findings={"phases": stats}, warnings=warnings)
