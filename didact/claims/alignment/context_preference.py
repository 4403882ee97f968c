"""Context-aware preference modelling's claim where criteria are known: a reward model trained with contexts obeys them.

Four criteria: more or fewer of one letter, longer or shorter. The paper's baseline is a reward model trained without
contexts and given them at test time. A model trained on the same pairs with their contexts left out is right on exactly
half of the reversal pairs, which tests the data and the measure. Another arm sees one record of every reversal pair.
The paper's adversarial contexts (`not` before a criterion) are a separate arm, trained on two of the four and tested
on the other two. Learning rate, steps and initial weights were tuned on seed 1000; 12 criteria in place of 4 were not
learnt in as many steps (.71 right).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import torch

from didact import alignment
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, equivalence, exact, gate
from didact.claims.problem import Problem
from didact.data import splits
from didact.evaluate import context_judges
from didact.learn import rewards
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit
from didact.worlds.criteria import Criteria

STEPS = {"smoke": 4, "quick": 200, "full": 400}
PAIRS = {"smoke": 100, "quick": 1000, "full": 3000}  # reversal pairs, and pairs without a context
ASKED = {"smoke": 20, "quick": 200, "full": 600}
TAUGHT, OTHERS = ("more:a", "shorter"), ("fewer:a", "longer")  # criteria that `not` stands before
SHOWN = (2, 8)  # judgements from which a person's criterion is inferred
PEOPLE = 40
Spoilt = Literal["", "shuffled", "flipped", "halved"]
"""Corruption of the contexts (shuffled) or of every reversal pair's second record (label flipped, record dropped)."""
TEMPLATE = "{prompt} {context} :"
FIT: dict[str, Any] = {"lr": 3e-3, "rows": 24, "schedule": "cosine", "warmup_steps": 20}


def problem(seed: int) -> Problem:
    """A model of 35k random weights; pairs of a tenth of the prompts are held out. The paper's rate is too small."""
    pairs = [*_world(seed).reversals(1, 1500), *_world(seed).general(2, 1500)]
    unseen, preferences = splits.by_prompt(pairs, 0.1, seed)
    return Problem(
        model=_base(seed),
        data={"preferences": preferences},
        options={"template": TEMPLATE, "choices": ["longer", "shorter"]},
        fit={**FIT, "steps": 200},
        protocol={"preferences": unseen},
    )


def run(seed: int, tier: runner.Tier, spoilt: Spoilt = "") -> runner.Measured:
    """The reward model trained with contexts, those trained without or on half of each pair, one trained with `not`."""
    settings = {"general": ("general",), "none": ("none",), "unpaired": ("context", "halved")}
    baselines = {name: _baseline(seed, tier, *setting) for name, setting in settings.items()}
    return {"carm": _carm(seed, tier, spoilt), **baselines, "negated": _negated(seed, tier)}


def _carm(seed: int, tier: runner.Tier, spoilt: Spoilt) -> dict[str, float]:
    judge, world = _judge(_train(seed, tier, "context", spoilt)), _world(seed, noise=0.0)
    return _accuracies(judge, world, tier) | _two_steps(judge, world, tier) | _profiles(judge, world, tier)


@lab.shared
def _baseline(seed: int, tier: runner.Tier, read: str, spoilt: Spoilt = "") -> dict[str, float]:
    return _accuracies(_judge(_train(seed, tier, read, spoilt)), _world(seed, noise=0.0), tier)


@lab.shared
def _negated(seed: int, tier: runner.Tier) -> dict[str, float]:
    """Accuracy on contexts with `not` after training with it before two criteria: on those two and on the others."""
    judge = _judge(_train(seed, tier, "context", negated=TAUGHT))
    out = {}
    for name, criteria in (("taught", TAUGHT), ("others", OTHERS)):
        pairs = _world(seed, noise=0.0).reversals(5, ASKED[tier], negated=criteria)
        negated = [p for p in pairs if str(p.context).startswith("not ")]
        out[name] = float(context_judges.right(context_judges.margins(judge, negated, TEMPLATE)).mean())
    return out


def _world(seed: int, noise: float = 0.05) -> Criteria:
    """The four criteria: more or fewer of one letter, longer or shorter."""
    return Criteria(counted=1, noise=noise, seed=seed)


def _base(seed: int) -> Model:
    """Random weights: the reward model need not know the language beforehand."""
    texts = [" ".join(_world(seed).criteria()), "not"]
    return lab.blank("gpt2", texts, 270, d=32, layers=2, heads=4, context=48, seed=seed, initializer_range=0.1)


def _train(seed: int, tier: runner.Tier, read: Any, spoilt: Spoilt = "", negated: tuple[str, ...] = ()) -> Model:
    world, n = _world(seed), PAIRS[tier]
    pairs = world.reversals(1, n, negated=negated)
    if spoilt == "flipped":  # both contexts of a pair then prefer the same answer
        pairs = [
            dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) if i % 2 else p for i, p in enumerate(pairs)
        ]
    if spoilt == "halved":
        pairs = pairs[::2]
    if spoilt == "shuffled":
        order = np.random.default_rng([seed, 64]).permutation(len(pairs))
        pairs = [dataclasses.replace(p, context=pairs[i].context) for p, i in zip(pairs, order, strict=True)]
    fit, pairs = Fit(**FIT, steps=STEPS[tier], seed=seed), [*pairs, *world.general(2, n)]
    return lab.model_of(alignment.context_preference(_base(seed), pairs, read=read, template=TEMPLATE, fit=fit))


def _judge(model: Model) -> context_judges.Margin:
    return context_judges.by_reward(functools.partial(rewards.score, model))


def _accuracies(judge: context_judges.Margin, world: Criteria, tier: runner.Tier) -> dict[str, float]:
    """Accuracies on held-out pairs, labelled without noise."""
    pairs = [*world.reversals(3, ASKED[tier]), *world.general(4, ASKED[tier])]
    return {k: m.value for k, m in context_judges.accuracies(judge, pairs, TEMPLATE).items()}


def _two_steps(judge: context_judges.Margin, world: Criteria, tier: runner.Tier) -> dict[str, float]:
    """Mean absolute error of the predicted share of people who prefer an answer: mean over contexts, or without one."""
    pairs = world.general(4, ASKED[tier])
    shares = np.array([world.share(p.prompt, p.chosen, p.rejected) for p in pairs])
    criteria = [world.judges(p.prompt) for p in pairs]
    margins = context_judges.over(judge, pairs, [list(c) for c in criteria], TEMPLATE)
    two_step = preference.aggregated(margins, "mean", torch.tensor([list(c.values()) for c in criteria])).numpy()
    one_step = torch.sigmoid(torch.as_tensor(context_judges.margins(judge, pairs, None))).numpy()
    return {
        "two_step_error": float(np.abs(two_step - shares).mean()),
        "one_step_error": float(np.abs(one_step - shares).mean()),
    }


def _profiles(judge: context_judges.Margin, world: Criteria, tier: runner.Tier) -> dict[str, float]:
    """How often a person's criterion comes out as the likeliest, given a few of their judgements."""
    names = world.criteria()
    by_criterion = {c: [p for p in world.reversals(6, 4 * ASKED[tier]) if p.context == c] for c in names}
    rng, hits = np.random.default_rng([world.seed, 65]), dict.fromkeys(SHOWN, 0)
    for person in range(PEOPLE):
        criterion = names[person % len(names)]
        judgements = [by_criterion[criterion][i] for i in rng.permutation(len(by_criterion[criterion]))[: max(SHOWN)]]
        for n in SHOWN:
            hits[n] += names[context_judges.likeliest(judge, judgements[:n], names, TEMPLATE)[0]] == criterion
    return {f"profile_{n}": hits[n] / PEOPLE for n in SHOWN}


SHARE, OBEYS, OWN = "of pairs", "obeys contexts", "carm.with_context"
NOT = "obeys a not before other criteria"

CLAIM = runner.Claim(
    method="context-preference",
    text=(
        "A reward model taught on pairs that contexts put in opposite orders judges new pairs by their context; one "
        "taught without contexts does not when it is given them, and without a context nothing can. It obeys a `not` "
        "before criteria for which it was taught none."
    ),
    run=run,
    gates=(gate("pairs without a context are learnt", "general.general", at_least=0.7, unit=SHARE),),
    tests=(
        difference("obeys contexts where the untaught does not", OWN, "general.with_context", SHARE),
        bound(OBEYS, OWN, 0.8, SHARE),
        exact("without contexts half are right", "none.without_context", 0.5, 1e-9, "of reversal pairs"),
        bound(NOT, "negated.others", 0.8, SHARE),
        bound("contexts turn reversal pairs", "carm.turned", 0.8, reported=True),
        equivalence("as good without contexts", "carm.general", "general.general", 0.05, SHARE, reported=True),
        difference("two steps are nearer to people's share than one", "carm.two_step_error", "carm.one_step_error",
                   "mean absolute error", less=True, reported=True),
        difference("more judgements tell more of who judges", "carm.profile_8", "carm.profile_2", "of people",
                   reported=True),
        bound("obeys a not before criteria it was taught", "negated.taught", 0.8, SHARE, reported=True),
        difference("the reversed records help", OWN, "unpaired.with_context", SHARE, reported=True),
    ),
    sabotages=(
        runner.Sabotage("contexts shuffled", OBEYS, OWN, options={"spoilt": "shuffled"}),
        runner.Sabotage("second labels flipped", OBEYS, OWN, options={"spoilt": "flipped"}),
        runner.Sabotage("contexts cut off", OBEYS, OWN,
                        {"didact.data.contexts:with_context": lambda prompt, context, template: prompt}),
    ),
)  # fmt: skip
