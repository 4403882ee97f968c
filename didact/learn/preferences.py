"""Teaching from pairs of completions: their rows, the start's log-probs, and the terms every margin loss has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from didact.data import encode
from didact.data.streams import Item, Micro
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import Taught
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit, Preference

Loss = Literal["dpo", "ipo", "simpo"]


def items(model: Model, preferences: Sequence[Preference], name: str = "preferences") -> list[Item]:
    """Rows of the chosen and the rejected completion of every pair."""
    sides = [
        encode.rows(model.tokenizer, pairs, model.kind, model.context, name)
        for pairs in ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    ]
    return list(zip(*sides, strict=True))


def teach(
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
) -> Taught:
    """A copy of `model` taught by `loss`, the model as it came being the reference.

    Args:
        model: a causal or seq2seq model.
        preferences: pairs; every prompt is read alike by model and reference.
        fit: how to train.
        loss: dpo, ipo, or simpo (means over tokens, no reference).
        beta: scale of the margin.
        label_smoothing: of dpo, the share of pairs assumed to be the wrong way round.
        gamma: of simpo, the margin asked for.
        hooks: called around every step.
        name: of the phase; the loss's by default.
        identity: what else a checkpoint must have been made with.

    Returns:
        The history has the loss under its name, the scaled `margin` and the `accuracy`.
    """
    pairs = items(model, preferences)
    ref = None if loss == "simpo" else language.reference_logp(model, pairs).to(model.device)

    def terms(student: Model, micro: Micro) -> Mapping[str, Term]:
        logp, count = language.sequence_logp(student, micro)
        if ref is None:
            mean = logp / count
            margin = beta * (mean[:, 0] - mean[:, 1])
            losses = preference.simpo(mean[:, 0], mean[:, 1], beta, gamma)
        else:
            was = ref[micro.index]
            sides = (logp[:, 0], logp[:, 1], was[:, 0], was[:, 1])
            margin = beta * preference.margin(*sides)
            losses = (
                preference.ipo(*sides, beta) if loss == "ipo" else preference.dpo(*sides, beta, label_smoothing)
            )  # fmt: skip
        margin = margin.detach()
        return {
            loss: Term(losses.sum(), "pairs.rows"),
            "margin": Term(margin.sum(), "pairs.rows", 0.0),
            "accuracy": Term((margin > 0).to(margin).sum(), "pairs.rows", 0.0),
        }

    chosen = {"loss": loss, "beta": beta, "label_smoothing": label_smoothing, "gamma": gamma, **(identity or {})}
    return language.teach(model, {"pairs": pairs}, terms, fit, hooks=hooks, name=name or loss, identity=chosen)


def implicit_rewards(model: Model, start: Model, preferences: Sequence[Preference], beta: float) -> Tensor:
    """`r = beta (logp - ref_logp)` of both sides of every pair, `(N, 2)`: the reward a taught model stands for."""
    pairs = items(model, preferences)
    with torch.no_grad():
        return beta * (language.reference_logp(model, pairs) - language.reference_logp(start, pairs)).cpu()
