"""Reward augmentation's claim where every answer's score is known: goals steer, and reversing pairs is the reason.

The start answers at random and has seen goals that carry no information. Every arm trains on the same pairs up to the
same KL from the start (`KL`), or for 250 steps. Without the label smoothing of the paper's recipes training collapsed
on seed 1000 (beta .3 and 1, 3e-4 to 3e-3): at a KL of .7 most probability lay on texts that are no answer, which an
earlier form of this claim did not see. With it, beta .3 still collapsed and beta 3 hardly moved. At beta 1 the goals
needed 1e-3 to move within the steps; plain DPO moved at 3e-4, and at 1e-3 lost the answers on seed 1001. A KL of .08
shifts the mean score by .7 at most, so goals of 1 and 10 can be 1.4 points apart; the test requires half a point.
Nothing is sampled: all 256 answers are scored under every goal. Any other text counts as score 0, and at least half of
the probability must be left on answers under every goal. Steering is measured by how far goal 10 lies above goal 1,
not by rank correlation alone: on seed 1000 records without the reversed half gave ten scores within 0.2 points, in
almost the right order. The rank correlation's thresholds are those that the paper's card expects: .85, and above that
of records without the reversed half. Plain fine-tuning on every answer under its own score is a control: where it
steers as far, DPO is not needed. Whether the highest goal gives better answers than plain DPO is reported, signed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from didact import alignment, baselines
from didact.claims import lab, runner
from didact.claims.alignment import reward_augmented_example as example
from didact.claims.alignment import scored_tables
from didact.claims.lab import bound, difference, exact, gate
from didact.data import encode, goals
from didact.learn import language
from didact.learn.fit import Step, StopWhen
from didact.models.model import Model
from didact.types import Demo, Fit, Preference

STEPS = {"smoke": (20, 4), "quick": (200, 250), "full": (200, 250)}  # to tune the start; to train an arm, at most
PAIRS = 3000
KL, LOOK = 0.08, 10  # nats an answer, where training ends; steps between checks
RATES = {"ra": 1e-3, "not turned round": 1e-3, "dpo": 3e-4, "csft": 1e-3}
BETA, SMOOTHING = 1.0, 0.3  # smoothing as in the paper's recipes for Qwen2 and Gemma-2
GOOD = 7  # score from which rejected answers should not be unlearnt
OPTIONS: dict[str, dict[str, Any]] = {"ra": {}, "not turned round": {"legacy_nosys": True}}
BESIDE = ("not turned round", "dpo", "csft")

problem = example.problem


def run(seed: int, tier: runner.Tier, beside: bool = True, steps: int | None = None) -> runner.Measured:
    """The start, the method, the method without reversed pairs, plain DPO, and conditional fine-tuning."""
    start = _start_table(seed, tier)
    out = {"start": scored_tables.measures(start, start, seed), "ra": _arm(seed, tier, "ra", steps)}
    return out | {name: _cached(seed, tier, name) for name in BESIDE if beside}


def _start(seed: int, tier: runner.Tier) -> Model:
    return example.tuned(seed, steps=STEPS[tier][0])


def _pairs(seed: int) -> list[Preference]:
    return example.world(seed).pairs(2, PAIRS, near=0.2)


def _arm(seed: int, tier: runner.Tier, name: str, steps: int | None = None) -> dict[str, float]:
    start, pairs, plain = _start(seed, tier), _pairs(seed), name == "dpo"
    stop = StopWhen(_distance_rule(seed, tier, None if plain else 7))
    fit = Fit(lr=RATES[name], steps=steps or STEPS[tier][1], rows=32, warmup_steps=10, schedule="constant", seed=seed)
    if plain:
        result = baselines.dpo(start, pairs, beta=BETA, label_smoothing=SMOOTHING, fit=fit, hooks=[stop])
    elif name == "csft":
        result = baselines.sft(start, _goal_demos(pairs), fit=fit, hooks=[stop])
    else:
        result = alignment.reward_augmented(
            start, pairs, **OPTIONS[name], wording=example.WORDING, step=1.0, beta=BETA, label_smoothing=SMOOTHING,
            fit=fit, hooks=[stop],
        )  # fmt: skip
    model = lab.model_of(result)
    measures = scored_tables.measures(scored_tables.table(model, seed), _start_table(seed, tier), seed)
    rejected = [(p.prompt if plain else example.WORDING.prompt(p.prompt, (r,)), p.rejected)
                for p in pairs if (r := float(p.rejected_score or 0)) >= GOOD]  # fmt: skip
    measures["unlearnt"] = float((lab.logp(start, rejected)[0] - lab.logp(model, rejected)[0]).mean())
    loss_error = abs(result.history[0]["loss"] - math.log(2))  # log 2 is the loss at a margin of 0
    return measures | {"first_loss_off": loss_error, "steps": float(len(result.history))}


_cached = lab.shared(_arm)


def _goal_demos(pairs: Sequence[Preference]) -> list[Demo]:
    """Demonstrations of every answer under its own score as the goal."""
    sides = [(p.prompt, text, score) for p in pairs
             for text, score in ((p.chosen, p.chosen_score), (p.rejected, p.rejected_score))]  # fmt: skip
    return [Demo(prompt=example.WORDING.prompt(x, (float(r or 0),)), completion=text) for x, text, r in sides]


def _distance_rule(seed: int, tier: runner.Tier, goal: int | None) -> Callable[[Step], bool]:
    """A stopping rule: whether the model is `KL` from its start under one goal, checked every `LOOK` steps."""
    start, initial = _start(seed, tier), _start_table(seed, tier)[goal or 0]

    def rule(step: Step) -> bool:
        if (step.step + 1) % LOOK:
            return False
        module: Any = step.module
        return bool(
            scored_tables.distance(scored_tables.table(Model(module, start.processor), seed, (goal,)), initial).mean()
            >= KL
        )

    return rule


@lab.shared
def _start_table(seed: int, tier: runner.Tier) -> Tensor:
    return scored_tables.table(_start(seed, tier), seed)


_scores_of, _reference = goals.scores_of, language.reference_logp


def _shuffled(preferences: Any, *rest: Any) -> Any:
    sides = [side for pair in _scores_of(preferences, *rest) for side in pair]
    mixed = [sides[i] for i in np.random.default_rng(0).permutation(len(sides))]
    return list(zip(mixed[::2], mixed[1::2], strict=True))


def _without_goal(model: Model, items: Any) -> Any:
    """Sabotage of `language.reference_logp`: the goal's line before the prompt is cut off."""
    newline = model.tokenizer(example.WORDING.joint, add_special_tokens=False)["input_ids"][-1]

    def shortened(row: encode.TokenizedExample) -> encode.TokenizedExample:
        cut = row.prompt.index(newline) + 1 if newline in row.prompt else 0
        return encode.TokenizedExample(row.prompt[cut:], row.completion)

    return _reference(model, [tuple(shortened(r) for r in item) for item in items])


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
        gate("DPO gives answers", "dpo.plain_mass", at_least=0.5, unit="of probability"),
        gate("DPO learns from these pairs", "dpo.plain_reward", at_least=5.2, unit="mean score"),
    ),
    tests=(
        bound("answers under every goal", "ra.mass", 0.5, "of probability, under the worst goal"),
        bound("scores rise with the goal", "ra.rho", 0.85, "rank correlation over 10 goals"),
        bound(FAR, "ra.range", 0.5, "points, goal 10 less goal 1"),
        difference("turning round is why goals reach far", "ra.range", "not turned round.range", "points", null=0.5),
        exact(REFERENCE, "ra.first_loss_off", 0.0, 1e-3, "nats, the first loss from log 2"),
        difference("the order of scores follows because of turning round", "ra.rho", "not turned round.rho",
                   "rank correlation"),
        difference("goals reach further than by conditional fine-tuning", "ra.range", "csft.range", "points",
                   reported=True),
        difference("better answers under the highest goal than DPO's", "ra.reward", "dpo.plain_reward", "mean score",
                   reported=True),
        difference("good rejected answers lose less than with DPO", "ra.unlearnt", "dpo.unlearnt", "nats an answer",
                   less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("goals of other answers", FAR, "ra.range", {"didact.data.goals:scores_of": _shuffled},
                        {"beside": False}),
        runner.Sabotage("reference read without the goal", REFERENCE, "ra.first_loss_off",
                        {"didact.learn.language:reference_logp": _without_goal}, {"beside": False, "steps": 1}),
    ),
)  # fmt: skip
