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

from typing import Any

import numpy as np
from scipy import stats

from didact import alignment, baselines
from didact.claims import lab, runner
from didact.claims.alignment import reward_augmented_example as example
from didact.claims.lab import bound, difference, exact, gate
from didact.data import encode, goals
from didact.learn import language
from didact.models.model import Model
from didact.types import Fit, Preference
from didact.worlds.scored import PROMPTS

STEPS = {"smoke": (20, 4), "quick": (150, 250), "full": (150, 700)}  # to tune the start; to teach
PAIRS = 3000
RATE, BETA = 3e-3, 1.0  # of 1e-3, 3e-3 and 6e-3 (which failed on seed 1001), of 0.3 and 1
GOALS = range(1, 11)
HIGH, GOOD = 9, 7  # scores: the best, and those of rejected answers that should not be unlearnt
ARMS: dict[str, dict[str, Any]] = {"ra": {}, "not turned round": {"legacy_nosys": True}}

problem = example.problem


def run(seed: int, tier: runner.Tier, arms: tuple[str, ...] = tuple(ARMS), steps: int | None = None) -> runner.Measured:
    """The start, plain DPO, and the method whole and with its second half not turned round."""
    start = _start(seed, tier)
    out = {"start": _measures(start, seed), "dpo": _dpo(seed, tier)}
    for name in arms:
        result = alignment.reward_augmented(
            start, _pairs(seed), **ARMS[name], wording=example.WORDING, step=1.0, beta=BETA,
            fit=_fit(seed, tier, steps),
        )  # fmt: skip
        model = lab.model_of(result)
        unlearnt = _unlearnt(model, seed, tier, with_goal=True)
        out[name] = _measures(model, seed) | {"first_loss": result.history[0]["loss"], "unlearnt": unlearnt}
    return out


def _start(seed: int, tier: runner.Tier) -> Model:
    return example.tuned(seed, steps=STEPS[tier][0])


def _pairs(seed: int) -> list[Preference]:
    return example.world(seed).pairs(2, PAIRS, near=0.2)


def _fit(seed: int, tier: runner.Tier, steps: int | None = None) -> Fit:
    return Fit(lr=RATE, steps=steps or STEPS[tier][1], rows=32, schedule="cosine", warmup_steps=10, seed=seed)


@lab.shared
def _dpo(seed: int, tier: runner.Tier) -> dict[str, float]:
    """Shared, for plain prompts have no goal to be broken."""
    model = lab.model_of(baselines.dpo(_start(seed, tier), _pairs(seed), beta=BETA, fit=_fit(seed, tier)))
    return _measures(model, seed) | {"unlearnt": _unlearnt(model, seed, tier, with_goal=False)}


def _measures(model: Model, seed: int) -> dict[str, float]:
    """Mean scores E[r | g] under every goal, and without one; exact, over all answers to all prompts."""
    world = example.world(seed)
    asked, answers = PROMPTS[: world.prompts], world.answers()
    score = np.array([[world.score(x, a) for a in answers] for x in asked])

    def expected(goal: int | None) -> tuple[float, float, float]:
        """The score, the share of the best answers, and the probability of all answers."""
        prompts = [example.WORDING.prompt(x, (float(goal),)) if goal else x for x in asked]
        logp = lab.logp(model, [(p, a) for p in prompts for a in answers])[0].view(len(asked), -1)
        share = logp.softmax(1).numpy()
        best = float((share * (score >= HIGH)).sum(1).mean())
        return float((share * score).sum(1).mean()), best, float(logp.exp().sum(1).mean())

    under = [expected(goal) for goal in GOALS]
    rewards, (plain, plain_best, _) = [u[0] for u in under], expected(None)
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


def _unlearnt(model: Model, seed: int, tier: runner.Tier, with_goal: bool) -> float:
    """How much log-prob good rejected answers lose, nats each, under the goal their own score is or under none."""
    good = [(p.prompt, p.rejected, float(p.rejected_score or 0)) for p in _pairs(seed)]
    asked = [(example.WORDING.prompt(x, (r,)) if with_goal else x, text) for x, text, r in good if r >= GOOD]
    return float((lab.logp(_start(seed, tier), asked)[0] - lab.logp(model, asked)[0]).mean())


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


ONE = {"arms": ("ra",)}
FAR, REFERENCE = "goals reach far", "the start is the reference, goal and all"

CLAIM = runner.Claim(
    method="reward-augmented",
    text=(
        "From scored pairs under the goals of both their sides, a model learns to answer as well, or as badly, as the "
        "goal in its prompt asks; pairs that are not turned round under the lower goal do not teach that."
    ),
    run=run,
    gates=(
        gate("the start gives answers", "start.mass", at_least=0.5, unit="of probability"),
        gate("DPO learns from these pairs", "dpo.plain_reward", at_least=6.5, unit="mean score"),
    ),
    tests=(
        bound("scores rise with the goal", "ra.rho", 0.5, "rank correlation over 10 goals"),
        bound(FAR, "ra.range", 1.0, "points, goal 10 less goal 1"),
        difference("the order of scores follows because of turning round", "ra.rho", "not turned round.rho",
                   "rank correlation", reported=True),
        difference("turning round is why goals reach far", "ra.range", "not turned round.range", "points", null=1.0),
        exact(REFERENCE, "ra.first_loss", float(np.log(2)), 1e-3, "first loss"),
        difference("better answers under the highest goal than DPO's", "ra.reward", "dpo.plain_reward", "mean score",
                   reported=True),
        difference("more of the best answers than DPO's", "ra.high", "dpo.plain_high", reported=True),
        difference("good rejected answers lose less than with DPO", "ra.unlearnt", "dpo.unlearnt", "nats an answer",
                   less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("goals of other answers", FAR, "ra.range", {"didact.data.goals:scores_of": _shuffled}, ONE),
        runner.Sabotage("reference read without the goal", REFERENCE, "ra.first_loss",
                        {"didact.learn.language:reference_logp": _without_goal}, {**ONE, "steps": 1}),
    ),
)  # fmt: skip
