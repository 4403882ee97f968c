"""Reward-augmented preferences: relabel each pair under its two scores as goals, so that a goal steers the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MaxLen

from didact.bounds import BelowOne, NonNegative, Positive, PositiveShare, Smoothing
from didact.data import goals
from didact.data.goals import Sides, Wording
from didact.infer import generate
from didact.learn import pairs
from didact.learn.fit import Hook
from didact.learn.language import TrainResult
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Cost, Fit, Preference, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "ipo": {"loss": "ipo", "beta": 0.1},
    "simpo": {"loss": "simpo", "beta": 2.5},
    "smoothed": {"label_smoothing": 0.3},  # the official recipes for Qwen2 and Gemma-2
    "half": {"share": 0.5},  # as many records as there are pairs
    "positive": {"reverse": False},
    "implicit": {"scores": "implicit"},
    "official-nosys": {"legacy_nosys": True, "wording.place": "user", "label_smoothing": 0.3},
}


@method(
    "reward-augmented",
    paper="Reward-Augmented Data Enhances Direct Preference Alignment of LLMs",
    year=2024,
    source="arXiv:2410.08067",
    gives=("models", "predict", "records", "findings"),
    protocol=("prefer", "goals"),
    presets=PRESETS,
)
def reward_augmented(
    model: Model,
    preferences: Sequence[Preference],
    *,
    loss: Literal["dpo", "ipo", "simpo"] = "dpo",
    beta: Positive = 0.01,
    label_smoothing: Smoothing = 0.0,
    gamma: float = 0.5,
    scores: Literal["given", "implicit"] = "given",
    span: Annotated[Sequence[float], MaxLen(2)] = (),
    step: NonNegative = 0.1,
    noise: NonNegative = 0.0,
    min_gap: float = 0.0,
    reverse: bool = True,
    share: PositiveShare = 1.0,
    dropout: BelowOne = 0.0,
    wording: Wording = Wording(),
    legacy_nosys: bool = False,
    fit: Fit = Fit(lr=5e-7, epochs=1, rows=128, warmup=0.1, schedule="cosine"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Use the scores of preference pairs, so that good rejected answers are not penalised nor bad chosen ones rewarded.

    Under a goal g an answer of score r is worth R = -(g - r)^2. A pair (y_w, y_l) with scores r_w and r_l thus gives
    two records, whose prompt x asks for a score:

        (x + r_w, y_w over y_l)        (x + r_l, y_l over y_w)

    and any preference loss trains on both, DPO by default:

        L = -mean log sigmoid(beta ((logp_+ - ref_+) - (logp_- - ref_-)))

    logp is the SUM over an answer's tokens, ref the initial model, on the same prompt with its goal. The trained model
    is prompted for the top of the scale: this `condition` is saved with it, and all didact commands apply it. Other
    tools need `findings["asked"]` before a prompt (in its system turn); without it the model answers like the average
    of its pairs. `predict` takes any goal.

    An epoch has twice as many records as there are pairs: compare with plain DPO at equal steps.

    Args:
        model: a causal or seq2seq model; left unchanged, a trained copy is returned.
        preferences: pairs with `chosen_score` and `rejected_score`.
        loss: dpo, ipo, or simpo (means over tokens, no reference).
        beta: scale of the margin; 0.01 with millions of pairs, 0.1 to 0.5 for small models.
        label_smoothing: for dpo, the share of records assumed to be the wrong way round.
        gamma: for simpo, the target margin.
        scores: `given` with the pairs, or `implicit`: the loss first trains on the plain pairs, and that
            model's beta (logp - ref_logp), stretched over the scale, are the scores.
        span: lowest and highest possible given score, stretched over the scale. By default scores are used as they are
            if all are on the scale, and otherwise stretched from their own lowest and highest (with a warning).
        step: goals are rounded to multiples of it; 0 does not round.
        noise: standard deviation of noise on the given scores.
        min_gap: pairs whose goals are no further apart are dropped; below 0 ties are kept too, in both orders.
        reverse: also add the records under the rejected side's goal, with the sides swapped.
        share: share of the pairs used, drawn at random.
        dropout: share of records without a goal.
        wording: how a goal is worded, and the scale of goals.
        legacy_nosys: as the official script for models without a system turn: sides are not swapped.
        fit: how to train.
        hooks: called around every step of the last training.

    Returns:
        The model; `predict(prompts, goal)`; the records trained on, with their `goal`; `findings`: the text to put
        before a prompt, the number of dropped pairs, how often each goal occurs.

    Raises:
        UserError: a pair has no scores; all pairs are ties; the loss became NaN.
    """
    if span and (len(span) < 2 or not span[0] < span[1]):
        raise UserError(f"span = {' '.join(map(goals.printed, span))}: two numbers, the lower one first")
    if scores == "implicit" and wording.attributes:
        raise UserError("scores = implicit: they are one number a side; leave out wording.attributes")
    rng = np.random.default_rng([fit.seed, 96])
    indices = sorted(rng.permutation(len(preferences))[: max(1, round(share * len(preferences)))])
    pool, warnings, cost = [preferences[i] for i in indices], [], Cost()
    pair_loss = preference.pair_loss(loss, beta, gamma, label_smoothing)

    def train(records: Sequence[Preference], name: str, hooks: Sequence[Hook] = ()) -> TrainResult:
        return pairs.train(
            model, pairs.groups(model, records), pair_loss.loss, fit, reference=model if pair_loss.reference else None,
            mean=pair_loss.mean, log=pairs.margins(beta), hooks=hooks, name=name, loss_name=loss,
        )  # fmt: skip

    if scores == "implicit":
        implicit_run = train(pool, "implicit")
        cost = implicit_run.cost
        rewards = pairs.implicit_rewards(implicit_run.model, model, pool, beta).tolist()
        raw_scores: list[Sides] = [((chosen,), (rejected,)) for chosen, rejected in rewards]
        stretch: tuple[float, float] | None = goals.reach(raw_scores)
    else:
        raw_scores = goals.noisy(goals.scores_of(pool, wording.attributes), noise, fit.seed)
        stretch = (float(span[0]), float(span[1])) if span else None
        if not span and not noise and (stretch := goals.span_of(raw_scores, wording.scale)):
            ends = " to ".join(map(goals.printed, stretch))
            warnings.append(f"scores from {ends} were stretched over the scale: say what they lie between with --span")
    if stretch and stretch[0] == stretch[1]:
        raise UserError("all scores are the same: there is no goal to tell apart")
    goal_pairs = goals.on_scale(raw_scores, wording.scale, stretch, step)
    records = goals.relabelled(
        pool, goal_pairs, wording, min_gap=min_gap, reverse=reverse, dropout=dropout, legacy_nosys=legacy_nosys,
        seed=fit.seed,
    )  # fmt: skip
    if not records:
        raise UserError(f"all {len(pool)} pairs are ties: lower min_gap or step")
    trained = train(records, "train", hooks)
    return trained.result(
        models={"model": dataclasses.replace(trained.model, condition=wording.condition(wording.best))},
        predict=_predict(trained.model, wording),
        records=records,
        findings={
            "asked": wording.text(wording.best),
            "place": wording.place,
            "pairs": len(pool),
            "dropped": sum(goals.gap(sides) <= min_gap for sides in goal_pairs),
            "turned_over": sum(chosen < rejected for chosen, rejected in goal_pairs),
            "records": len(records),
            "goals": goals.counts(records),
        },
        cost=cost + trained.cost,
        warnings=warnings,
    )


def _predict(model: Model, wording: Wording) -> Callable[..., list[str]]:
    """Answer under a goal, the highest by default; options are those of `infer.generate`."""

    def predict(prompts: Sequence[str], goal: float | Sequence[float] | None = None, **how: Any) -> list[str]:
        target = wording.best if goal is None else tuple(goal) if isinstance(goal, Sequence) else (float(goal),)
        return generate.generate(model, [wording.prompt(p, target) for p in prompts], **how)

    return predict
