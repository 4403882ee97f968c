"""Reward-augmented preferences: every pair under the goals its own two scores are, so that a goal steers the model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from didact.data import contexts, goals
from didact.data.goals import Sides, Wording
from didact.evaluate import protocols
from didact.evaluate.measures import Measure
from didact.infer import generate
from didact.learn import preferences as learner
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.registry import method
from didact.types import Cost, Fit, Preference, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "ipo": {"loss": "ipo", "beta": 0.1},
    "simpo": {"loss": "simpo", "beta": 2.5},
    "smoothed": {"label_smoothing": 0.3},  # the official recipes for Qwen2 and Gemma-2
    "half": {"share": 0.5},  # as many records as there are pairs
    "positive": {"reverse": False},
    "implicit": {"scores": "implicit"},
    "official-nosys": {"legacy_nosys": True, "place": "user", "label_smoothing": 0.3},
}
SHOWN = 3  # prompts answered before and after


@method(
    "reward-augmented",
    paper="Reward-Augmented Data Enhances Direct Preference Alignment of LLMs",
    year=2024,
    source="arXiv:2410.08067",
    gives=("models", "predict", "records", "findings"),
    presets=PRESETS,
)
def reward_augmented(
    model: Model,
    preferences: Sequence[Preference],
    *,
    loss: learner.Loss = "dpo",
    beta: float = 0.01,
    label_smoothing: float = 0.0,
    gamma: float = 0.5,
    scores: Literal["given", "implicit"] = "given",
    attributes: Sequence[str] = (),
    scale: tuple[float, float] = (1.0, 10.0),
    span: Sequence[float] = (),
    step: float = 0.1,
    noise: float = 0.0,
    min_gap: float = 0.0,
    reverse: bool = True,
    share: float = 1.0,
    dropout: float = 0.0,
    template: str = goals.TEMPLATE,
    place: Literal["system", "user"] = "system",
    joint: str = "\n\n",
    legacy_nosys: bool = False,
    unseen: float = 0.1,
    fit: Fit = Fit(lr=5e-7, epochs=1, rows=128, warmup=0.1, schedule="cosine"),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Result:
    """Use the scores of preference pairs, so that good rejected answers are not unlearnt nor bad chosen ones praised.

    Under a goal g an answer of score r is worth R = -(g - r)^2. So a pair (y_w, y_l) with scores r_w and r_l gives
    two records, whose prompt x asks for a score:

        (x + r_w, y_w over y_l)        (x + r_l, y_l over y_w)

    and any preference loss is taught on both, DPO by default:

        L = -mean log sigmoid(beta ((logp_+ - ref_+) - (logp_- - ref_-)))

    logp is the SUM over an answer's tokens, ref the model as it came, on the same prompt with its goal. The taught
    model is asked for the top of the scale: that is its `condition`, which goes where it is saved and which every
    verb obeys. Other tools need `findings["asked"]` before a prompt (in its system turn); without it the model answers
    as the average of its pairs. `predict` asks for any goal.

    An epoch has twice as many records as there are pairs: compare with plain DPO at equal steps.

    Args:
        model: a causal or seq2seq model; it stays as it was, a taught copy is returned.
        preferences: pairs with `chosen_score` and `rejected_score`.
        loss: dpo, ipo, or simpo (means over tokens, no reference).
        beta: scale of the margin; 0.01 with millions of pairs, 0.1 to 0.5 for small models.
        label_smoothing: of dpo, the share of records assumed to be the wrong way round.
        gamma: of simpo, the margin asked for.
        scores: `given` with the pairs, or `implicit`: the loss is taught on the plain pairs first, and
            beta (logp - ref_logp) of that model, stretched over the scale, are the scores.
        attributes: several scores a side, in the fields `chosen_scores` and `rejected_scores`, objects by name.
        scale: lowest and highest goal.
        span: between what the given scores lie, to be stretched over the scale; where not told they are on the scale
            already, or else between the lowest and the highest of them (a warning says so).
        step: goals are rounded to multiples of it; 0 does not round.
        noise: standard deviation of noise on the given scores.
        min_gap: pairs whose goals lie no further apart are dropped; below 0 ties stay too, with both orders.
        reverse: also the records under the rejected side's goal, turned round.
        share: of the pairs used, drawn at random.
        dropout: share of records that stay pairs without a goal.
        template: the instruction, with `{goal}`, and `{attribute}`, `{low}`, `{high}` where wanted.
        place: of a conversation: its system turn, or before the first user text.
        joint: between instruction and text.
        legacy_nosys: as the official script for models without a system turn: answers are not turned round.
        unseen: share of the pairs not taught, on which the metrics are.
        fit: how to train.
        hooks: called around every step of the last training.

    Returns:
        The model; `predict(prompts, goal)`; the taught records with their `goal`; `findings`: what to put before a
        prompt, what was dropped, how often each goal is asked for. Metrics on pairs not taught: `followed`, records
        whose side is right under its goal; `preferred`, pairs in their right order under the highest goal.

    Raises:
        UserError: an option is out of range; a pair has no scores; all pairs are ties; the loss became NaN.
    """
    _check(beta, label_smoothing, scale, span, step, noise, share, dropout, unseen)
    if scores == "implicit" and attributes:
        raise UserError("implicit scores are one number a side: leave out attributes")
    wording = Wording(template=template, scale=scale, attributes=tuple(attributes), place=place, joint=joint)
    out, taught_on = _split(preferences, unseen, share, fit.seed)
    pairs = [*taught_on, *out]
    options: dict[str, Any] = {"loss": loss, "beta": beta, "label_smoothing": label_smoothing, "gamma": gamma}
    warnings, cost = [], Cost()
    if scores == "implicit":
        first = learner.train(model, taught_on, fit, **options, name="implicit")
        cost = first.cost
        earned = learner.implicit_rewards(first.model, model, pairs, beta).tolist()
        given: list[Sides] = [((chosen,), (rejected,)) for chosen, rejected in earned]
        stretch: tuple[float, float] | None = goals.reach(given[: len(taught_on)])
    else:
        given = _noisy(goals.scores_of(pairs, attributes), noise, fit.seed)
        stretch = (float(span[0]), float(span[1])) if span else None
        low, high = goals.reach(given)
        if not span and not noise and not scale[0] <= low <= high <= scale[1]:
            stretch = (low, high)
            ends = " to ".join(goals.printed(x) for x in (low, high))
            warnings.append(f"scores from {ends} were stretched over the scale: say what they lie between with --span")
    if stretch and stretch[0] == stretch[1]:
        raise UserError("all scores are the same: there is no goal to tell apart")
    named = goals.on_scale(given, scale, stretch, step)
    how: dict[str, Any] = {"min_gap": min_gap, "reverse": reverse, "dropout": dropout, "legacy_nosys": legacy_nosys}
    records = goals.relabelled(taught_on, named[: len(taught_on)], wording, **how, seed=fit.seed)
    if not records:
        raise UserError(f"all {len(taught_on)} pairs are ties: lower min_gap or step")
    taught = learner.train(model, records, fit, **options, hooks=hooks, name="train")
    cost = Cost(tokens=cost.tokens + taught.cost.tokens, flops=cost.flops + taught.cost.flops)
    made = taught.model
    asked = Model(made.module, made.processor, made.kind, made.base, wording.condition(wording.best))
    looks = [_look(m, out, named[len(taught_on) :], wording) for m in (model, taught.model)]
    return Result(
        models={"model": asked},
        predict=_asking(taught.model, wording),
        records=list(records),
        findings={
            "asked": wording.text(wording.best),
            "place": place,
            "pairs": len(taught_on),
            "dropped": sum(goals.gap(s) <= min_gap for s in named[: len(taught_on)]),
            "turned_over": sum(s[0] < s[1] for s in named[: len(taught_on)]),  # the chosen side has the lower score
            "records": len(records),
            "goals": _counts(records),
        },
        metrics=protocols.compare(*looks) if out else {},
        history=taught.history,
        samples=_samples(model, taught.model, out or taught_on, wording),
        cost=cost,
        warnings=warnings,
    )  # fmt: skip


def _check(
    beta: float, label_smoothing: float, scale: Sequence[float], span: Sequence[float], step: float, noise: float,
    share: float, dropout: float, unseen: float,
) -> None:  # fmt: skip
    if beta <= 0 or not 0 <= label_smoothing < 0.5 or min(step, noise) < 0:
        raise UserError("reward-augmented needs beta above 0, label_smoothing in [0, 0.5), step and noise of 0 or more")
    if not 0 < share <= 1 or not 0 <= dropout < 1 or not 0 <= unseen < 1:
        raise UserError("reward-augmented needs share in (0, 1], dropout and unseen in [0, 1)")
    if not scale[0] < scale[1] or (span and (len(span) != 2 or not span[0] < span[1])):
        raise UserError("reward-augmented needs scale and span as two numbers, the lower first")


def _split(
    preferences: Sequence[Preference], unseen: float, share: float, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Pairs kept apart, by prompt; and those taught, in their order."""
    out, rest = contexts.apart(preferences, unseen, seed)
    draw = np.random.default_rng([seed, 96])
    kept = sorted(draw.permutation(len(rest))[: max(1, round(share * len(rest)))])
    return out, [rest[i] for i in kept]


def _noisy(scores: list[Sides], noise: float, seed: int) -> list[Sides]:
    draw = np.random.default_rng([seed, 99])
    if not noise:
        return scores
    return [
        (tuple(x + noise * draw.standard_normal() for x in a), tuple(x + noise * draw.standard_normal() for x in b))
        for a, b in scores
    ]


def _look(model: Model, out: Sequence[Preference], named: Sequence[Sides], wording: Wording) -> dict[str, Measure]:
    """On pairs not taught: whether answers follow their goals, and the order of pairs under the highest goal."""
    apart = goals.relabelled(out, named, wording)
    if not apart:
        return {}
    best = [dataclasses.replace(pair, prompt=wording.prompt(pair.prompt, wording.best)) for pair in out]
    return {
        "followed": protocols.prefer(model, apart)["preferred"],
        "preferred": protocols.prefer(model, best)["preferred"],
    }


def _asking(model: Model, wording: Wording) -> Callable[..., list[str]]:
    """Answers under a goal, the highest by default; options as `infer.generate` has them."""

    def predict(prompts: Sequence[str], goal: float | Sequence[float] | None = None, **how: Any) -> list[str]:
        wanted = wording.best if goal is None else tuple(goal) if isinstance(goal, Sequence) else (float(goal),)
        return generate.generate(model, [wording.prompt(p, wanted) for p in prompts], **how)

    return predict


def _counts(records: Sequence[Preference]) -> dict[str, int]:
    """How many records ask for each goal; of several attributes, each combination."""
    told = sorted(r.extra["goal"] for r in records if "goal" in r.extra)
    names = [" ".join(map(goals.printed, g)) if isinstance(g, list) else goals.printed(g) for g in told]
    return dict(Counter(names))


def _samples(start: Model, taught: Model, pairs: Sequence[Preference], wording: Wording) -> list[dict[str, str]]:
    """Greedy answers of both models under the lowest and the highest goal."""
    asked = list(dict.fromkeys(p.prompt for p in pairs))[:SHOWN]
    ends = (tuple(wording.scale[0] for _ in wording.best), wording.best)
    prompts = [wording.prompt(p, goal) for p in asked for goal in ends]
    before, after = generate.generate(start, prompts), generate.generate(taught, prompts)
    return [
        {"part": "goals", "prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)
    ]
