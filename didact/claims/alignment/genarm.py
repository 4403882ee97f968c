"""GenARM's claim where every answer can be enumerated: more reward at the same KL from the base model.

Answers to one prompt are four letters out of five, 625 in all, so expected reward and KL are sums. Pairs are sampled
from the base and labelled by the true reward. Every way to guide is set to the same KL by bisecting its strength; all
reward models have the same pairs and steps, each at the better of two rates on seed 1000. On that seed the design was
changed twice: models have two layers, since with one layer a reward of whole answers cannot see pairs of letters; and
the small model is 32 wide, since at 16 it kept .53 of the large one's gain. Not tested: how good a reward model of real
preferences is, and human judgement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from didact import alignment, baselines
from didact.claims import lab, runner
from didact.claims.alignment import enumerated, genarm_example
from didact.claims.lab import bound, difference, exact, gate
from didact.infer import guide
from didact.models import logit_ensemble
from didact.models.model import Model
from didact.types import Demo, Fit, Preference
from didact.worlds import outcomes

WORLD = outcomes.Outcomes(letters=5, length=4)
PROMPT = "Q "
BUDGETS = {"03": 0.3, "07": 0.7}  # KL to the base, nats an answer
ALPHAS = (0.5, 1.0, 2.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the first of two rewards
STEPS = {"smoke": (30, 10), "quick": (150, 160), "full": (400, 500)}  # to train the base; to train each reward model
PAIRS = {"smoke": 200, "quick": 3000, "full": 6000}
RATES = {"arm": 1.5e-3, "trajectory": 1.5e-3, "dpo": 4e-3, "weak": 4e-3}  # of 1.5e-3 and 4e-3
SURE = 2.0  # logit of the label per unit of reward
PARTS = ("trajectory", "dpo", "weak", "two")

problem = genarm_example.problem


def run(seed: int, tier: runner.Tier, parts: tuple[str, ...] = PARTS, right: float = 1.0) -> runner.Measured:
    """Every way to guide on one seed; `right` is the share of preference pairs whose label is kept."""
    base, reward = _base(seed, tier), WORLD.reward(seed)
    ref, arm_model = _table(base), _arm(seed, tier, right)
    arm, start = _table(arm_model), WORLD.logp(ref)

    def guided(by: Tensor) -> Callable[[float], Tensor]:
        return lambda alpha: WORLD.logp(logit_ensemble.combine(ref, [(by, alpha)]))

    policies = {
        "arm": guided(arm),
        "untrained": guided(ref),
        "difference": guided(arm.log_softmax(-1) - ref.log_softmax(-1)),
        "optimum": lambda w: outcomes.tilted(start, reward, 1 / max(w, 1e-9)),
    }
    if "trajectory" in parts:
        prefix_rewards, whole_rewards = _trajectory(seed, tier)
        policies["trajectory"] = lambda w: WORLD.logp(ref.log_softmax(-1) + w * prefix_rewards)
        policies["whole"] = lambda w: (start + w * whole_rewards).log_softmax(-1)
    if "dpo" in parts:
        pairs = _pairs(seed, tier, reward, right)
        policy = lab.model_of(baselines.dpo(base, pairs, beta=1.0, fit=_fit(seed, tier, "dpo")))
        log_ratio = WORLD.logp(_table(policy)) - start
        policies["dpo"] = lambda w: (start + w * log_ratio).log_softmax(-1)
    if "weak" in parts:
        pairs = _pairs(seed, tier, reward, right)
        policies["weak"] = guided(_table(_guide(_base(seed, tier, 32), pairs, _fit(seed, tier, "weak"))))
    out = {name: _at_budgets(policy, start, reward) for name, policy in policies.items()}
    mean = float(start.exp() @ reward)
    for name, against in (("weak", "arm"), ("arm", "dpo")):
        if name in out and against in out:
            out[name]["kept"] = (out[name]["reward_07"] - mean) / (out[against]["reward_07"] - mean)
    logps = [policies["arm"](a) for a in ALPHAS]
    kls, means = [float(outcomes.kl(p, start)) for p in logps], [float(p.exp() @ reward) for p in logps]
    out["arm"] |= {"rise": min(np.diff(means)), "rise_kl": min(np.diff(kls)), "kl_1": kls[1]}
    decoder, expected = guide.GuidedDecoder(base, [(arm_model, 1.0)]), (ref.log_softmax(-1) + arm.log_softmax(-1))
    out["arm"]["decoder"] = enumerated.decoder_off(decoder, base, WORLD, PROMPT, expected.softmax(-1))
    out["base"] = {"reward": mean, "spread": float((start.exp() @ (reward - start.exp() @ reward).square()).sqrt())}
    if "two" in parts:
        out["two"] = _trade(base, ref, arm, reward, seed, tier)
    return out


def _at_budgets(policy: Callable[[float], Tensor], start: Tensor, reward: Tensor) -> dict[str, float]:
    """Expected reward at every KL budget; and the KL reached, which falls short where no strength reaches it."""
    out: dict[str, float] = {}
    for name, target in BUDGETS.items():
        strength, logp = outcomes.matched(policy, start, target)
        out[f"reward_{name}"], out[f"kl_{name}"] = float(logp.exp() @ reward), float(outcomes.kl(logp, start))
        out[f"strength_{name}"] = strength
    return out


def _trade(base: Model, ref: Tensor, first: Tensor, reward: Tensor, seed: int, tier: runner.Tier) -> dict[str, float]:
    """Two rewards, one reward model each: the trade-off between them as their weights vary."""
    second_reward = WORLD.reward(seed + 5000)
    second_guide = _table(_guide(base, _pairs(seed, tier, second_reward), _fit(seed, tier, "arm")))
    mixtures = [WORLD.logp(logit_ensemble.combine(ref, [(first, s), (second_guide, 1 - s)])).exp() for s in SHARES]
    first_means, second_means = (np.array([float(p @ r) for p in mixtures]) for r in (reward, second_reward))
    middle = (first_means + second_means)[len(SHARES) // 2]
    return {
        "trade": float(min(np.diff(first_means).min(), -np.diff(second_means).max())),
        "bulge": float(middle - (first_means + second_means)[[0, -1]].mean()),
    }


def _base(seed: int, tier: runner.Tier, d: int = 64) -> Model:
    """Two layers, d wide, fine-tuned on samples of a random Markov source."""
    samples = WORLD.drawn(WORLD.logp(WORLD.source(seed, 0.7)), 2000, seed)
    demos = [Demo(prompt=PROMPT, completion=WORLD.text(WORLD.answers[i])) for i in samples]
    fit = Fit(lr=3e-3, steps=STEPS[tier][0], rows=64, schedule="cosine", seed=seed)
    return lab.tuned(lab.blank("llama", d=d, layers=2, heads=4, context=16, seed=seed), demos, fit)


def _pairs(seed: int, tier: runner.Tier, reward: Tensor, right: float = 1.0) -> list[Preference]:
    """Preference pairs sampled from the base model."""
    logp = WORLD.logp(_table(_base(seed, tier)))
    return WORLD.preferences(PROMPT, logp, reward, PAIRS[tier], seed, SURE, right)


def _fit(seed: int, tier: runner.Tier, arm: str) -> Fit:
    return Fit(lr=RATES[arm], steps=STEPS[tier][1], rows=64, schedule="linear", seed=seed)


def _guide(start: Model, pairs: list[Preference], fit: Fit) -> Model:
    """Train by the method, and return the reward model from its guided pair."""
    guided: Any = lab.model_of(alignment.genarm(start, pairs, beta_r=1.0, fit=fit))
    arm: Model = guided.members[1]
    return arm


@lab.shared
def _arm(seed: int, tier: runner.Tier, right: float) -> Model:
    """The reward model; sabotages change how it is applied or, by `right`, its pairs."""
    return _guide(_base(seed, tier), _pairs(seed, tier, WORLD.reward(seed), right), _fit(seed, tier, "arm"))


@lab.shared
def _trajectory(seed: int, tier: runner.Tier) -> tuple[Tensor, Tensor]:
    pairs = _pairs(seed, tier, WORLD.reward(seed))
    return enumerated.trajectory(_base(seed, tier), WORLD, PROMPT, pairs, _fit(seed, tier, "trajectory"))


def _table(model: Model) -> Tensor:
    return enumerated.table(model, WORLD, PROMPT)


PATCHED, PART = "didact.models.logit_ensemble:combine", {"parts": ("trajectory",)}
REWARD, ARM = "sd of reward", "arm.reward_07"
SHARPER, FORMULA = "more than sharpening the base", "the decoder samples what the formula says"

CLAIM = runner.Claim(
    method="genarm",
    text=(
        "At the same distance from the base model, guidance by an autoregressive reward model earns more reward than "
        "by one trained on whole answers, and nearly as much as a model taught by DPO; a smaller one serves too."
    ),
    run=run,
    gates=(
        gate("answers differ in reward", "base.spread", at_least=0.5, unit=REWARD),
        gate("the trajectory model knows whole answers", "whole.reward_07", at_least=0.5, unit=REWARD),
    ),
    tests=(
        difference("more reward than a trajectory reward model", ARM, "trajectory.reward_07", REWARD),
        difference("also nearer to the base", "arm.reward_03", "trajectory.reward_03", REWARD),
        difference(SHARPER, ARM, "untrained.reward_07", REWARD),
        bound("nine tenths of DPO's gain", "arm.kept", 0.9, "of DPO's gain"),
        bound("weak to strong", "weak.kept", 0.6, "of the large one's gain"),
        bound("the weight is a knob: reward", "arm.rise", 0.0, REWARD),
        bound("the weight is a knob: distance", "arm.rise_kl", 0.0, "nats"),
        bound("two rewards trade by their weights", "two.trade", 0.0, REWARD),
        exact(FORMULA, "arm.decoder", 0.0, 1e-4, "probability, the largest error"),
        bound("half of each is better than a mixture", "two.bulge", 0.0, REWARD, reported=True),
        difference("the log-ratio in its place is worse", ARM, "difference.reward_07", REWARD, reported=True),
        difference("what the true reward would give", "optimum.reward_07", ARM, REWARD, reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign of the reward flipped", SHARPER, ARM, {PATCHED: enumerated.backwards}, PART),
        runner.Sabotage("divided by the sum of weights", FORMULA, "arm.decoder", {PATCHED: enumerated.divided}, PART),
        runner.Sabotage("labels by coin", SHARPER, ARM, options={**PART, "right": 0.5}),
    ),
)  # fmt: skip
