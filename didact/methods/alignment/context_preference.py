"""Context-aware preference modelling: a reward model that judges by the context it is given, or chooses one."""

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
    "no-context": {"read": "none"},  # the same pairs, their contexts left out
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
    """Train a reward model r(x, z, y) to judge answers y by a context z: a criterion, a scenario, somebody's profile.

        L = -mean log sigmoid(r(x, z, y_w) - r(x, z, y_l)),        P(y1 > y2 | x) = sum_z p(z|x) P(y1 > y2 | x, z)

    A context stands in the prompt, behind the request. Pairs without one are trained on beside, lest judging without
    contexts be forgotten. The two records of a reversal pair, which two contexts put in opposite orders, are read in
    one step: what ignores the context then cancels in the gradient. Where no context is known, `predict` judges under
    several and puts the verdicts together.

    Files as of RPR (`response_a, response_b, criteria_x, criteria_y, scenario_x, scenario_y`) are read as reversal
    pairs. The model is a transformers sequence-classification folder of one output, which `didact compare --judge`
    takes.

    Args:
        model: a causal model with such a class in transformers; its body is trained under a new head.
        preferences: pairs, with a `context` or without.
        read: `context`; `none` leaves contexts out of the same pairs; `general` trains only on pairs without one.
        paired: read both records of a reversal pair in one step; `fit.rows` counts such a pair once.
        template: how `{context}` is put beside the `{prompt}`.
        reward_model: a reward model's folder to go on from, in place of `model` under a new head.
        choices: contexts to judge pairs under that have none.
        aggregate: how verdicts become one: the `mean` probability, the mean `logit`, or the `vote`.
        fit: how to train; `fit.rows` groups a step, of reversal pairs, of single pairs and of pairs without context
            each.
        hooks: called around every step.

    Returns:
        The reward model; `predict(prompts, first, second, contexts=None)`, the probability that the first answer is
        better. `findings`: how many pairs have a context and a reversed partner, and how many groups of each sort
        there are.

    Raises:
        UserError: the template lacks a field; the model has no such class; no pair is left to train on.
    """
    contexts.checked(template)
    start = reward_functions.opened(reward_model) if reward_model else rewards.headed(model, fit.seed)
    streams = _streams(preferences, read, paired, template)
    if not streams:
        raise UserError(f"preferences: no pair to train on with --read {read}")
    trained = rewards.train(start, streams, fit, hooks=hooks)
    given = [p for p in preferences if p.context]
    partnered = 2 * len(contexts.reversals(given)[0]) / max(1, len(given))
    warning = (
        f"{1 - partnered:.0%} of the pairs with a context have no reversed partner: on these a judge may be right "
        "without reading the context"
    )
    return trained.result(
        predict=_predict(trained.model, template, choices, aggregate),
        findings={
            "records": len(preferences),
            "with_context": len(given),
            "in_reversal_pairs": partnered,
            "groups": {name: len(groups) for name, groups in streams.items()},
        },
        warnings=[warning] if given and partnered < 1 else [],
    )


def _streams(preferences: Sequence[Preference], read: str, paired: bool, template: str) -> dict[str, list[list[Pair]]]:
    """Groups of pairs by stream: both of a reversal pair, pairs with a context, pairs without."""
    given = [p for p in preferences if p.context] if read != "general" else []

    def pair(p: Preference) -> Pair:
        return (contexts.asked(p.prompt, p.context if read == "context" else None, template), p.chosen, p.rejected)

    both, single = contexts.reversals(given) if paired else ([], list(range(len(given))))
    streams = {
        "reversals": [[pair(given[i]), pair(given[j])] for i, j in both],
        "pairs": [[pair(given[i])] for i in single],
        "general": [[pair(p)] for p in preferences if not p.context],
    }
    return {name: groups for name, groups in streams.items() if groups}


def _predict(model: Model, template: str, choices: Sequence[str], aggregate: Aggregate) -> Callable[..., list[float]]:
    """Two steps: contexts for every prompt, given or chosen; then the verdicts under them as one probability."""
    judge = context_judges.by_reward(functools.partial(rewards.score, model))

    def predict(
        prompts: Sequence[str], first: Sequence[str], second: Sequence[str],
        contexts: Sequence[Sequence[str]] | None = None, how: Aggregate = aggregate,
    ) -> list[float]:  # fmt: skip
        own = contexts if contexts is not None else [choices] * len(prompts)
        pairs = [Preference(prompt=p, chosen=a, rejected=b) for p, a, b in zip(prompts, first, second, strict=True)]
        margins = (
            context_judges.over(judge, [pair], [names or [""]], template)
            for pair, names in zip(pairs, own, strict=True)
        )
        return [float(preference.aggregated(z, how)) for z in margins]

    return predict
