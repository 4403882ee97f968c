"""Losses on text with a score for every label token, higher is better: each function returns a stream's loss.

Columns hold one value for every label token of every row. Means are over all label tokens. Source: Korbak et al. 2023,
arXiv:2302.08582.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from torch import Tensor

from didact.data.streams import MicroBatch
from didact.learn.fit import Term
from didact.learn.language import Loss
from didact.models import forward, value
from didact.models.model import Model
from didact.objectives import policy
from didact.objectives import tokens as token_functions


def unlikelihood(good: Sequence[Tensor], alpha: float) -> Loss:
    """-log p of good tokens, -alpha log(1 - p) of the others."""
    fns = {"loss": functools.partial(token_functions.unlikelihood, alpha=alpha)}

    def loss(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        losses = forward.tokens(student, micro.tokens, fns, {"good": micro.column(good)})["loss"]
        return {"unlikelihood": Term(losses.sum(), f"{micro.stream}.tokens")}

    return loss


def reward(scores: Sequence[Tensor], beta: float) -> Loss:
    """Reward-weighted regression: -min(e^(R / beta), 1000) log p."""

    def loss(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        nll = -forward.tokens(student, micro.tokens)["logp"]
        return {"rwr": _weighted(micro, nll, micro.column(scores), beta)}

    return loss


def advantage(scores: Sequence[Tensor], beta: float, value_weight: float) -> Loss:
    """Advantage-weighted regression of a model with a value head (`models.value`), V its values:

    -(1 - value_weight) min(e^((R - V) / beta), 1000) log p + value_weight (R - V)^2
    """

    def loss(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        states = forward.label_states(student, micro.tokens)
        nll = -forward.of_states(student, states, micro.tokens.target, {"logp": token_functions.logp})["logp"]
        gap = micro.column(scores) - value.of_states(student, states)
        return {
            "awr": _weighted(micro, nll, gap.detach(), beta, 1 - value_weight),
            "value": Term(gap.square().sum(), f"{micro.stream}.tokens", value_weight),
        }

    return loss


def _weighted(micro: MicroBatch, nll: Tensor, advantage: Tensor, beta: float, weight: float = 1.0) -> Term:
    return Term((policy.exponential_weight(advantage, beta) * nll).sum(), f"{micro.stream}.tokens", weight)
