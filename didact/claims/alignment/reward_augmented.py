"""Reward augmentation's claim where every answer's score is known: a goal steers, and turning pairs round is why.

The start answers at random and has seen goals that say nothing. Every arm has the same steps on the same pairs; rate
and beta are of those tried on seeds 1000 and 1001. Answers are not sampled: all 256 are scored under every goal,
and the policy is renormalised over them, for every arm lets probability go to texts that are no answer (`mass` is what
is left). Steering is measured by how far goal 10 lies above goal 1, not by rank correlation alone: on seed 1000 records
that are not turned round gave ten scores within 0.2 points, and these in almost the right order. Whether the highest
goal gives better answers than plain DPO is reported with its sign and does not gate.

The first run of this claim began from transformers' own narrow initial weights and was inconclusive: goal 10 lay 2.1
points above goal 1, .1 to 4.1. Wider ones were then tried on seeds 1000 and 1001, and the steps were cut from 350 to
250 to save time. In the second run shuffling pairs of scores left the chosen side with the higher one, and that
sabotage went unnoticed; now the sides' scores are shuffled.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy import stats

from didact import alignment, baselines
from didact.claims import runner, verdict
from didact.claims.alignment import reward_augmented_example as example
from didact.data import encode, goals
from didact.learn import episodes, language
from didact.models import forward
from didact.models.model import Model
from didact.types import Fit, Preference
from didact.worlds.scored import PROMPTS

STEPS = {"smoke": (20, 4), "quick": (150, 250), "full": (150, 700)}  # to tune the start; to teach
PAIRS = 3000
RATE, BETA = 3e-3, 1.0  # of 1e-3, 3e-3 and 6e-3 (which failed on seed 1001), of 0.3 and 1
GOALS = range(1, 11)
HIGH, GOOD = 9, 7  # scores: the best, and those of rejected answers that should not be unlearnt
ARMS: dict[str, dict[str, Any]] = {"ra": {}, "not turned round": {"legacy_nosys": True}}


def problem(seed: int) -> Any:
    """What `didact run reward-augmented` teaches when given no model and data."""
    return example.problem(seed)


@episodes.one_thread()
def run(
    seed: int, tier: runner.Tier, arms: tuple[str, ...] = tuple(ARMS), steps: int | None = None
) -> dict[str, dict[str, float]]:
    """The start, plain DPO, and the method whole and with its second half not turned round."""
    start = _start(seed, tier)
    out = {"start": _measures(start, seed), "dpo": _dpo(seed, tier)}
    for name in arms:
        result = alignment.reward_augmented(
            start, _pairs(seed), **ARMS[name], wording=example.WORDING, step=1.0, beta=BETA,
            fit=_fit(seed, tier, steps),
        )  # fmt: skip
        taught = result.models["model"]
        assert isinstance(taught, Model)
        unlearnt = _unlearnt(taught, seed, tier, told=True)
        out[name] = _measures(taught, seed) | {"first_loss": result.history[0]["loss"], "unlearnt": unlearnt}
    return out


def _pairs(seed: int) -> list[Preference]:
    return example.world(seed).pairs(2, PAIRS, near=0.2)


def _fit(seed: int, tier: runner.Tier, steps: int | None = None) -> Fit:
    return Fit(lr=RATE, steps=steps or STEPS[tier][1], rows=32, schedule="cosine", warmup_steps=10, seed=seed)


@functools.lru_cache(maxsize=64)
def _dpo(seed: int, tier: runner.Tier) -> dict[str, float]:
    """Shared like the start, for plain prompts have no goal to be broken."""
    start = _start(seed, tier)
    taught = baselines.dpo(start, _pairs(seed), beta=BETA, fit=_fit(seed, tier)).models["model"]
    assert isinstance(taught, Model)
    return _measures(taught, seed) | {"unlearnt": _unlearnt(taught, seed, tier, told=False)}


@functools.lru_cache(maxsize=64)
def _start(seed: int, tier: runner.Tier) -> Model:
    """Shared by the arms of a seed and by its sabotages, none of which touches this training."""
    return example.tuned(seed, steps=STEPS[tier][0])


def _measures(model: Model, seed: int) -> dict[str, float]:
    """Mean scores E[r | g] under every goal, and without one; exact, over all answers to all prompts."""
    world = example.world(seed)
    asked, answers = PROMPTS[: world.prompts], world.answers()
    score = np.array([[world.score(x, a) for a in answers] for x in asked])

    def mean(goal: int | None) -> tuple[float, float, float]:
        prompts = [example.WORDING.prompt(x, (float(goal),)) if goal else x for x in asked]
        rows = encode.rows(model.tokenizer, [(p, a) for p in prompts for a in answers], model.kind, model.context)
        logp = forward.row_logp(model, rows)[0].view(len(asked), -1)
        share = logp.softmax(1).numpy()
        best = float((share * (score >= HIGH)).sum(1).mean())
        return float((share * score).sum(1).mean()), best, float(logp.exp().sum(1).mean())

    under = [mean(goal) for goal in GOALS]
    plain, plain_best, _ = mean(None)
    rewards = [u[0] for u in under]
    return {
        "rho": float(stats.spearmanr(GOALS, rewards)[0]),
        "range": rewards[-1] - rewards[0],
        "reward": rewards[-1],
        "high": under[-1][1],
        "mass": under[-1][2],
        "lowest": rewards[0],
        "plain_reward": plain,
        "plain_high": plain_best,
    }


def _unlearnt(model: Model, seed: int, tier: runner.Tier, told: bool) -> float:
    """How much log-prob good rejected answers lose, nats each, under the goal their own score is if one is told."""
    good = [(p.prompt, p.rejected, p.rejected_score) for p in _pairs(seed) if (p.rejected_score or 0) >= GOOD]
    asked = [(example.WORDING.prompt(prompt, (float(r or 0),)) if told else prompt, text) for prompt, text, r in good]
    rows = encode.rows(model.tokenizer, asked, model.kind, model.context)
    return float((forward.row_logp(_start(seed, tier), rows)[0] - forward.row_logp(model, rows)[0]).mean())


_scores_of, _reference = goals.scores_of, language.reference_logp


def _shuffled(preferences: Any, *rest: Any) -> Any:
    sides = [side for pair in _scores_of(preferences, *rest) for side in pair]
    mixed = [sides[i] for i in np.random.default_rng(0).permutation(len(sides))]
    return list(zip(mixed[::2], mixed[1::2], strict=True))


def _without_goal(model: Model, items: Any) -> Any:
    """Rows less what stands before the line with the prompt."""
    line = model.tokenizer(example.WORDING.joint, add_special_tokens=False)["input_ids"][-1]

    def short(row: encode.TokenizedExample) -> encode.TokenizedExample:
        cut = row.prompt.index(line) + 1 if line in row.prompt else 0
        return encode.TokenizedExample(row.prompt[cut:], row.completion)

    return _reference(model, [tuple(short(r) for r in item) for item in items])


_ONE: dict[str, Any] = {"arms": ("ra",)}

CLAIM = runner.Claim(
    method="reward-augmented",
    text=(
        "From scored pairs under the goals of both their sides, a model learns to answer as well, or as badly, as the "
        "goal in its prompt asks; pairs that are not turned round under the lower goal do not teach that."
    ),
    run=run,
    gates=(
        verdict.gate("the start gives answers", "start.mass", at_least=0.5, unit="of probability"),
        verdict.gate("DPO learns from these pairs", "dpo.plain_reward", at_least=6.5, unit="mean score"),
    ),
    tests=(
        verdict.Test(
            name="scores rise with the goal", kind="bound", a="ra.rho", null=0.5, unit="rank correlation over 10 goals"
        ),
        verdict.Test(name="goals reach far", kind="bound", a="ra.range", null=1.0, unit="points, goal 10 less goal 1"),
        verdict.Test(
            name="the order of scores follows because of turning round", kind="difference", a="ra.rho",
            b="not turned round.rho", unit="rank correlation", gates="none",
        ),
        verdict.Test(
            name="turning round is why goals reach far", kind="difference", a="ra.range", b="not turned round.range",
            null=1.0, unit="points",
        ),
        verdict.Test(
            name="the start is the reference, goal and all", kind="exact", a="ra.first_loss", null=float(np.log(2)),
            margin=1e-3, unit="first loss",
        ),
        verdict.Test(
            name="better answers under the highest goal than DPO's", kind="difference", a="ra.reward",
            b="dpo.plain_reward", unit="mean score", gates="none",
        ),
        verdict.Test(
            name="more of the best answers than DPO's", kind="difference", a="ra.high", b="dpo.plain_high", gates="none"
        ),
        verdict.Test(
            name="good rejected answers lose less than with DPO", kind="difference", a="ra.unlearnt", b="dpo.unlearnt",
            direction="less", unit="nats an answer", gates="none",
        ),
    ),
    sabotages=(
        runner.Sabotage(
            name="goals of other answers", breaks="goals reach far", metric="ra.range",
            patch={"didact.data.goals:scores_of": _shuffled}, options=_ONE,
        ),
        runner.Sabotage(
            name="reference read without the goal", breaks="the start is the reference, goal and all",
            metric="ra.first_loss", patch={"didact.learn.language:reference_logp": _without_goal},
            options=_ONE | {"steps": 1},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
