"""Teaching from pairs of completions: their rows, the start's log-probs, and the terms every margin loss has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit, Preference

Loss = Literal["dpo", "ipo", "simpo"]
RowLoss = Literal["dpo", "ipo", "simpo", "orpo"]


def items(model: Model, preferences: Sequence[Preference], name: str = "preferences") -> list[ExampleGroup]:
    """Rows of the chosen and the rejected completion of every pair."""
    sides = [
        encode.rows(model.tokenizer, pairs, model.kind, model.context, name)
        for pairs in ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    ]
    return list(zip(*sides, strict=True))


def train(
    model: Model,
    preferences: Sequence[Preference],
    fit: Fit,
    *,
    loss: Loss = "dpo",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.5,
    hooks: Sequence[Hook] = (),
    name: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """A copy of `model` taught by `loss`, the model as it came being the reference.

    Args:
        model: a causal or seq2seq model.
        preferences: pairs; every prompt is read alike by model and reference.
        fit: how to train.
        loss: see `teach_rows`.
        beta: scale of the margin.
        label_smoothing: of dpo, the share of pairs assumed to be the wrong way round.
        gamma: of simpo, the margin asked for.
        hooks: called around every step.
        name: of the phase; the loss's by default.
        identity: what else a checkpoint must have been made with.

    Returns:
        The history has the loss under its name, the scaled `margin` and the `accuracy`.
    """
    chosen = {"loss": loss, "beta": beta, "label_smoothing": label_smoothing, "gamma": gamma, **(identity or {})}
    return train_rows(
        model, items(model, preferences), fit, loss=loss, beta=beta, label_smoothing=label_smoothing, gamma=gamma,
        hooks=hooks, name=name, identity=chosen,
    )  # fmt: skip


def train_rows(
    model: Model,
    pairs: Sequence[ExampleGroup],
    fit: Fit,
    *,
    loss: RowLoss = "dpo",
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
    gamma: float = 0.5,
    per_token: bool = False,
    weight: Tensor | None = None,
    against: Model | None = None,
    demos: Sequence[TokenizedExample] = (),
    sft_weight: float = 0.0,
    hooks: Sequence[Hook] = (),
    name: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """The same on pairs of rows (chosen, rejected), which may be any two that follow the same tokens.

    Args:
        model: a causal or seq2seq model.
        pairs: N of them.
        fit: how to train.
        loss: dpo, ipo, or without a reference simpo and orpo, on means over tokens.
        beta: scale of the margin; of orpo, weight of the odds beside -mean logp of the chosen.
        label_smoothing: of dpo, for all pairs or `(N,)`.
        gamma: of simpo.
        per_token: ipo on means over tokens, not on sums.
        weight: of every pair, `(N,)`; 1 by default.
        against: the reference; `model` by default.
        demos: taught beside the pairs where `sft_weight` is not 0.
        sft_weight: of their next-token loss.
        hooks: called around every step.
        name: of the phase; the loss's by default.
        identity: what a checkpoint must have been made with.
    """
    free = loss in ("simpo", "orpo")
    ref = None if free else language.reference_logp(against or model, pairs).to(model.device)
    share = None if weight is None else weight.to(model.device)
    smoothing = label_smoothing.to(model.device) if isinstance(label_smoothing, Tensor) else label_smoothing

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream == "demos":
            return {"sft": language.cross_entropy(student, micro, weight=sft_weight)}
        logp, count = language.sequence_logp(student, micro)
        was = torch.zeros_like(logp) if ref is None else ref[micro.index]
        if free or per_token:
            logp, was = logp / count, was / count
        sides = (logp[:, 0], logp[:, 1], was[:, 0], was[:, 1])
        if loss == "simpo":
            losses = preference.simpo(logp[:, 0], logp[:, 1], beta, gamma)
        elif loss == "orpo":
            losses = preference.orpo(logp[:, 0], logp[:, 1], beta)
        elif loss == "ipo":
            losses = preference.ipo(*sides, beta)
        else:
            unsure = smoothing[micro.index].to(logp) if isinstance(smoothing, Tensor) else smoothing
            losses = preference.dpo(*sides, beta, unsure)
        if share is not None:
            losses = share[micro.index].to(losses) * losses
        margin = (beta * preference.margin(*sides)).detach()
        return {
            loss: Term(losses.sum(), "pairs.rows"),
            "margin": Term(margin.sum(), "pairs.rows", 0.0),
            "accuracy": Term((margin > 0).to(margin).sum(), "pairs.rows", 0.0),
        }

    streams: dict[str, Sequence[ExampleGroup]] = {"pairs": pairs}
    if sft_weight:
        streams["demos"] = language.single(demos)
    return language.train(model, streams, terms, fit, hooks=hooks, name=name or loss, identity=identity)


def implicit_rewards(model: Model, start: Model, preferences: Sequence[Preference], beta: float) -> Tensor:
    """`r = beta (logp - ref_logp)` of both sides of every pair, `(N, 2)`: the reward a taught model stands for."""
    pairs = items(model, preferences)
    with torch.no_grad():
        return beta * (language.reference_logp(model, pairs) - language.reference_logp(start, pairs)).cpu()
