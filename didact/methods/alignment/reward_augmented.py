"""Reward-augmented preferences: every pair under the goals its own two scores are, so that a goal steers the model."""

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

    Under a goal g an answer of score r is worth R = -(g - r)^2. So a pair (y_w, y_l) with scores r_w and r_l gives
    two records, whose prompt x asks for a score:

        (x + r_w, y_w over y_l)        (x + r_l, y_l over y_w)

    and any preference loss trains on both, DPO by default:

        L = -mean log sigmoid(beta ((logp_+ - ref_+) - (logp_- - ref_-)))

    logp is the SUM over an answer's tokens, ref the model as it came, on the same prompt with its goal. The trained
    model is asked for the top of the scale: that is its `condition`, which is saved with it and which every verb uses.
    Other tools need `findings["asked"]` before a prompt (in its system turn); without it the model answers as the
    average of its pairs. `predict` asks for any goal.

    An epoch has twice as many records as there are pairs: compare with plain DPO at equal steps.

    Args:
        model: a causal or seq2seq model; it stays as it was, a trained copy is returned.
        preferences: pairs with `chosen_score` and `rejected_score`.
        loss: dpo, ipo, or simpo (means over tokens, no reference).
        beta: scale of the margin; 0.01 with millions of pairs, 0.1 to 0.5 for small models.
        label_smoothing: of dpo, the share of records assumed to be the wrong way round.
        gamma: of simpo, the margin asked for.
        scores: `given` with the pairs, or `implicit`: the loss trains on the plain pairs first, and
            beta (logp - ref_logp) of that model, stretched over the scale, are the scores.
        span: lowest and highest possible of the given scores, to be stretched over the scale; by default they are on
            the scale already, or else the lowest and the highest of them are taken (a warning says so).
        step: goals are rounded to multiples of it; 0 does not round.
        noise: standard deviation of noise on the given scores.
        min_gap: pairs whose goals lie no further apart are dropped; below 0 ties stay too, with both orders.
        reverse: also the records under the rejected side's goal, turned round.
        share: of the pairs used, drawn at random.
        dropout: share of records that stay pairs without a goal.
        wording: how a goal is put, and the scale of goals.
        legacy_nosys: as the official script for models without a system turn: answers are not turned round.
        fit: how to train.
        hooks: called around every step of the last training.

    Returns:
        The model; `predict(prompts, goal)`; the records trained on, with their `goal`; `findings`: what to put before a
        prompt, what was dropped, how often each goal is asked for.

    Raises:
        UserError: a pair has no scores; all pairs are ties; the loss became NaN.
    """
    if span and (len(span) < 2 or not span[0] < span[1]):
        raise UserError(f"span = {' '.join(map(goals.printed, span))}: two numbers, the lower one first")
    if scores == "implicit" and wording.attributes:
        raise UserError("scores = implicit: they are one number a side; leave out wording.attributes")
    draw = np.random.default_rng([fit.seed, 96])
    kept = sorted(draw.permutation(len(preferences))[: max(1, round(share * len(preferences)))])
    used, warnings, cost = [preferences[i] for i in kept], [], Cost()
    by_name = preference.named(loss, beta, gamma, label_smoothing)

    def train(records: Sequence[Preference], name: str, hooks: Sequence[Hook] = ()) -> TrainResult:
        return pairs.train(
            model, pairs.groups(model, records), by_name.loss, fit, reference=model if by_name.reference else None,
            mean=by_name.mean, log=pairs.margins(beta), hooks=hooks, name=name, loss_name=loss,
        )  # fmt: skip

    if scores == "implicit":
        first = train(used, "implicit")
        cost = first.cost
        rewards = pairs.implicit_rewards(first.model, model, used, beta).tolist()
        given: list[Sides] = [((chosen,), (rejected,)) for chosen, rejected in rewards]
        stretch: tuple[float, float] | None = goals.reach(given)
    else:
        given = goals.noisy(goals.scores_of(used, wording.attributes), noise, fit.seed)
        stretch = (float(span[0]), float(span[1])) if span else None
        if not span and not noise and (stretch := goals.span_of(given, wording.scale)):
            ends = " to ".join(map(goals.printed, stretch))
            warnings.append(f"scores from {ends} were stretched over the scale: say what they lie between with --span")
    if stretch and stretch[0] == stretch[1]:
        raise UserError("all scores are the same: there is no goal to tell apart")
    named = goals.on_scale(given, wording.scale, stretch, step)
    records = goals.relabelled(
        used, named, wording, min_gap=min_gap, reverse=reverse, dropout=dropout, legacy_nosys=legacy_nosys,
        seed=fit.seed,
    )  # fmt: skip
    if not records:
        raise UserError(f"all {len(used)} pairs are ties: lower min_gap or step")
    trained = train(records, "train", hooks)
    return trained.result(
        models={"model": dataclasses.replace(trained.model, condition=wording.condition(wording.best))},
        predict=_predict(trained.model, wording),
        records=records,
        findings={
            "asked": wording.text(wording.best),
            "place": wording.place,
            "pairs": len(used),
            "dropped": sum(goals.gap(sides) <= min_gap for sides in named),
            "turned_over": sum(chosen < rejected for chosen, rejected in named),
            "records": len(records),
            "goals": goals.counts(records),
        },
        cost=cost + trained.cost,
        warnings=warnings,
    )


def _predict(model: Model, wording: Wording) -> Callable[..., list[str]]:
    """Answers under a goal, the highest by default; options as `infer.generate` has them."""

    def predict(prompts: Sequence[str], goal: float | Sequence[float] | None = None, **how: Any) -> list[str]:
        wanted = wording.best if goal is None else tuple(goal) if isinstance(goal, Sequence) else (float(goal),)
        return generate.generate(model, [wording.prompt(p, wanted) for p in prompts], **how)

    return predict
