"""Context-aware preference modelling: a reward model that judges answers by a context, given or chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

from didact.data import contexts
from didact.evaluate import context_judges
from didact.learn import reward_functions, rewards
from didact.learn.fit import Hook
from didact.learn.rewards import Pair
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Preference, Result, UserError

Aggregate = Literal["mean", "logit", "vote"]

PRESETS: dict[str, dict[str, object]] = {
    "no-context": {"read": "none"},  # the same pairs without their contexts
    "context-free": {"read": "general"},  # only pairs without a context
    "unpaired": {"paired": False},
    "lora": {"fit.lora": 16, "fit.lr": 1e-4},
}


@method(
    "context-preference",
    paper="Improving Context-Aware Preference Modeling for Language Models",
    year=2024,
    source="arXiv:2407.14916",
    gives=("models", "predict", "findings"),
    kinds=("causal",),
    protocol=("contexts",),
    presets=PRESETS,
)
def context_preference(
    model: Model,
    preferences: Sequence[Preference],
    *,
    read: Literal["context", "none", "general"] = "context",
    paired: bool = True,
    template: str = contexts.TEMPLATE,
    reward_model: str = "",
    choices: Sequence[str] = (),
    aggregate: Aggregate = "mean",
    fit: Fit = Fit(lr=1e-5, epochs=1, rows=64, warmup=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a reward model r(x, z, y) to judge answers y by a context z: a criterion, a scenario, a user's profile.

        L = -mean log sigmoid(r(x, z, y_w) - r(x, z, y_l)),        P(y1 > y2 | x) = sum_z p(z|x) P(y1 > y2 | x, z)

    The context is part of the prompt, after the request. Pairs without a context are trained on as well, so that the
    model does not forget to judge without one. The two records of a reversal pair, which two contexts put in opposite
    orders, share a step: whatever ignores the context then cancels in the gradient. For prompts without a known
    context, `predict` judges under several and aggregates the verdicts.

    Files in RPR's format (`response_a, response_b, criteria_x, criteria_y, scenario_x, scenario_y`) are read as
    reversal pairs. The model is a transformers sequence-classification folder with one output, which
    `didact compare --judge` takes.

    Args:
        model: a causal model that has this class in transformers; its body is trained under a new head.
        preferences: pairs, with a `context` or without.
        read: `context`; `none` removes the contexts from the same pairs; `general` trains only on pairs without one.
        paired: put both records of a reversal pair in one step; `fit.rows` counts such a pair once.
        template: how `{context}` is combined with the `{prompt}`.
        reward_model: folder of a reward model to continue from, in place of `model` under a new head.
        choices: contexts under which to judge pairs that have none.
        aggregate: how verdicts are combined: the `mean` probability, the mean `logit`, or the `vote`.
        fit: how to train; each step takes `fit.rows` groups of reversal pairs, of single pairs and of pairs without
            context each.
        hooks: called around every step.

    Returns:
        The reward model; `predict(prompts, first, second, contexts=None)`, the probability that the first answer is
        better. `findings`: number of pairs with a context, share of them in reversal pairs, number of groups of each
        kind.

    Raises:
        UserError: the template lacks a field; the model has no such class; no pair is left to train on.
    """
    contexts.checked(template)
    start = reward_functions.opened(reward_model) if reward_model else rewards.headed(model, fit.seed)
    streams = _streams(preferences, read, paired, template)
    if not streams:
        raise UserError(f"preferences: no pair to train on with --read {read}")
    trained = rewards.train(start, streams, fit, hooks=hooks)
    with_context = [p for p in preferences if p.context]
    paired_share = 2 * len(contexts.reversals(with_context)[0]) / max(1, len(with_context))
    warning = (
        f"{1 - paired_share:.0%} of the pairs with a context have no reversed partner: on these a judge may be right "
        "without reading the context"
    )
    return trained.result(
        predict=_predict(trained.model, template, choices, aggregate),
        findings={
            "records": len(preferences),
            "with_context": len(with_context),
            "in_reversal_pairs": paired_share,
            "groups": {name: len(groups) for name, groups in streams.items()},
        },
        warnings=[warning] if with_context and paired_share < 1 else [],
    )


def _streams(preferences: Sequence[Preference], read: str, paired: bool, template: str) -> dict[str, list[list[Pair]]]:
    """Group the pairs by stream: both records of a reversal pair, pairs with a context, pairs without."""
    with_context = [p for p in preferences if p.context] if read != "general" else []

    def pair(p: Preference) -> Pair:
        return (
            contexts.with_context(p.prompt, p.context if read == "context" else None, template),
            p.chosen,
            p.rejected,
        )

    both, single = contexts.reversals(with_context) if paired else ([], list(range(len(with_context))))
    streams = {
        "reversals": [[pair(with_context[i]), pair(with_context[j])] for i, j in both],
        "pairs": [[pair(with_context[i])] for i in single],
        "general": [[pair(p)] for p in preferences if not p.context],
    }
    return {name: groups for name, groups in streams.items() if groups}


def _predict(model: Model, template: str, choices: Sequence[str], aggregate: Aggregate) -> Callable[..., list[float]]:
    """Build `predict`: find the contexts of every prompt, given or chosen, and combine the verdicts under them."""
    judge = context_judges.by_reward(functools.partial(rewards.score, model))

    def predict(
        prompts: Sequence[str], first: Sequence[str], second: Sequence[str],
        contexts: Sequence[Sequence[str]] | None = None, how: Aggregate = aggregate,
    ) -> list[float]:  # fmt: skip
        per_prompt = contexts if contexts is not None else [choices] * len(prompts)
        pairs = [Preference(prompt=p, chosen=a, rejected=b) for p, a, b in zip(prompts, first, second, strict=True)]
        margins = (
            context_judges.over(judge, [pair], [prompt_contexts or [""]], template)
            for pair, prompt_contexts in zip(pairs, per_prompt, strict=True)
        )
        return [float(preference.aggregated(z, how)) for z in margins]

    return predict
