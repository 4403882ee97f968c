"""Context-aware preference modelling's claim where criteria are known: taught with contexts a reward model obeys them.

Four criteria, more or fewer of a letter, longer or shorter. The baseline of the paper is a reward model taught without
contexts and then given them. Without its context no model can be right on more or less than half of reversal pairs:
that is an exact test of the data and of the measure. Rate, steps and initial weights were tried on seed 1000. There 12
criteria in place of 4 were not learnt in as many steps (.71 right).

The paper's adversarial contexts, criteria with a `not` before them, are an arm of its own, which was also taught two of
the four. On seed 1000 these were obeyed (.88 right on new pairs) and the other two were not (.36): of so few criteria
none is learnt that `not` could be put before. So both are told, and gate nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import torch

from didact import alignment
from didact.claims import runner, verdict
from didact.claims.alignment import context_preference_example as example
from didact.evaluate import context_judges as looks
from didact.learn import episodes, rewards
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit, Preference
from didact.worlds.criteria import Criteria

STEPS = {"smoke": 4, "quick": 200, "full": 400}
PAIRS = {"smoke": 100, "quick": 1500, "full": 3000}  # reversal pairs, and pairs without a context
ASKED = {"smoke": 20, "quick": 200, "full": 600}
TAUGHT, OTHERS = ("more:a", "shorter"), ("fewer:a", "longer")  # criteria with a `not` before them
SHOWN = (2, 8)  # judgements of somebody whose criterion is to be found
PEOPLE = 40
Spoilt = Literal["", "shuffled", "flipped"]
"""What a sabotage does to the contexts, or to the labels of every reversal pair's second record."""


def problem(seed: int) -> Any:
    """What `didact run context-preference` teaches when given no model and data."""
    return example.problem(seed)


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, spoilt: Spoilt = "") -> dict[str, dict[str, float]]:
    """The reward model taught with contexts, and the one taught without them."""
    carm = _measures(_taught(seed, tier, "context", spoilt), seed, tier)
    return {"carm": carm, "general": _general(seed, tier), "negated": _negated(seed, tier)}


@functools.lru_cache(maxsize=64)
def _general(seed: int, tier: runner.Tier) -> dict[str, float]:
    """Shared by the sabotages of a seed, none of which is about it."""
    return _measures(_taught(seed, tier, "general"), seed, tier)


@functools.lru_cache(maxsize=64)
def _negated(seed: int, tier: runner.Tier) -> dict[str, float]:
    """How often a model that knows `not` before two criteria is right where it stands before these, or the others."""
    judge = looks.by_reward(functools.partial(rewards.score, _taught(seed, tier, "context", negated=TAUGHT)))
    out = {}
    for name, which in (("taught", TAUGHT), ("others", OTHERS)):
        asked = example.world(seed, noise=0.0).reversals(5, ASKED[tier], negated=which)
        some = [p for p in asked if str(p.context).startswith("not ")]
        out[name] = float(looks.right(looks.margins(judge, some, example.TEMPLATE)).mean())
    return out


def _taught(seed: int, tier: runner.Tier, read: Any, spoilt: Spoilt = "", negated: tuple[str, ...] = ()) -> Model:
    world, n = example.world(seed), PAIRS[tier]
    told = world.reversals(1, n, negated=negated)
    if spoilt == "flipped":  # both contexts of a pair then want the same answer
        told = [
            dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) if i % 2 else p for i, p in enumerate(told)
        ]
    if spoilt == "shuffled":
        order = np.random.default_rng([seed, 64]).permutation(len(told))
        told = [dataclasses.replace(p, context=told[i].context) for p, i in zip(told, order, strict=True)]
    fit = Fit(**{**example.FIT, "steps": STEPS[tier], "seed": seed})  # type: ignore[arg-type]  # options by name
    result = alignment.context_preference(
        example.base(seed), [*told, *world.general(2, n)], read=read, template=example.TEMPLATE, fit=fit
    )
    taught = result.models["model"]
    assert isinstance(taught, Model)
    return taught


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On pairs no training saw, labelled without noise."""
    judge = looks.by_reward(functools.partial(rewards.score, model))
    world = example.world(seed, noise=0.0)
    told, general = world.reversals(3, ASKED[tier]), world.general(4, ASKED[tier])
    found = looks.accuracies(judge, [*told, *general], example.TEMPLATE)
    out = {name: m.value for name, m in found.items()}
    return out | _two_steps(judge, general, world) | _profiles(judge, world, tier)


def _two_steps(judge: looks.Margin, pairs: list[Preference], world: Criteria) -> dict[str, float]:
    """Mean error of the share of people who prefer an answer: by contexts drawn as they are, and without."""
    true = np.array([world.share(p.prompt, p.chosen, p.rejected) for p in pairs])
    own = [world.judges(p.prompt) for p in pairs]
    z = looks.over(judge, pairs, [list(j) for j in own], example.TEMPLATE)
    two = preference.aggregated(z, "mean", torch.tensor([list(j.values()) for j in own])).numpy()
    one = torch.sigmoid(torch.as_tensor(looks.margins(judge, pairs, None))).numpy()
    return {"two_step_error": float(np.abs(two - true).mean()), "one_step_error": float(np.abs(one - true).mean())}


def _profiles(judge: looks.Margin, world: Criteria, tier: runner.Tier) -> dict[str, float]:
    """How often somebody's criterion is the likeliest one, from a few of their judgements."""
    names = world.criteria()
    of = {c: [p for p in world.reversals(6, 4 * ASKED[tier]) if p.context == c] for c in names}
    draw, right = np.random.default_rng([world.seed, 65]), dict.fromkeys(SHOWN, 0)
    for person in range(PEOPLE):
        mine = names[person % len(names)]
        shown = [of[mine][i] for i in draw.permutation(len(of[mine]))[: max(SHOWN)]]
        for n in SHOWN:
            right[n] += names[looks.likeliest(judge, shown[:n], names, example.TEMPLATE)[0]] == mine
    return {f"profile_{n}": right[n] / PEOPLE for n in SHOWN}


def _cut(prompt: str, context: str | None, template: str) -> str:
    return prompt


CLAIM = runner.Claim(
    method="context-preference",
    text=(
        "A reward model taught on pairs that contexts put in opposite orders judges new pairs by their context; one "
        "taught without contexts does not when it is given them, and without a context nothing can."
    ),
    run=run,
    gates=(verdict.gate("pairs without a context are learnt", "general.general", at_least=0.7, unit="of pairs"),),
    tests=(
        verdict.Test(
            name="obeys contexts where the untaught does not", kind="difference", a="carm.with_context",
            b="general.with_context", unit="of pairs",
        ),
        verdict.Test(name="obeys contexts", kind="bound", a="carm.with_context", null=0.8, unit="of pairs"),
        verdict.Test(
            name="without contexts half are right", kind="exact", a="carm.reversal_without_context", null=0.5,
            margin=1e-9, unit="of reversal pairs",
        ),
        verdict.Test(name="contexts turn reversal pairs", kind="bound", a="carm.turned", null=0.8, gates="none"),
        verdict.Test(
            name="as good without contexts", kind="equivalence", a="carm.general", b="general.general", margin=0.05,
            unit="of pairs", gates="none",
        ),
        verdict.Test(
            name="two steps are nearer to people's share than one", kind="difference", a="carm.two_step_error",
            b="carm.one_step_error", direction="less", unit="mean absolute error", gates="none",
        ),
        verdict.Test(
            name="more judgements tell more of who judges", kind="difference", a="carm.profile_8", b="carm.profile_2",
            unit="of people", gates="none",
        ),
        verdict.Test(name="obeys a not", kind="bound", a="negated.taught", null=0.8, unit="of pairs", gates="none"),
        verdict.Test(
            name="obeys a not before other criteria", kind="bound", a="negated.others", null=0.8, unit="of pairs",
            gates="none",
        ),
    ),
    sabotages=(
        runner.Sabotage(
            name="contexts shuffled", breaks="obeys contexts", options={"spoilt": "shuffled"},
            metric="carm.with_context",
        ),
        runner.Sabotage(
            name="second labels flipped", breaks="obeys contexts", options={"spoilt": "flipped"},
            metric="carm.with_context",
        ),
        runner.Sabotage(
            name="contexts cut off", breaks="obeys contexts", metric="carm.with_context",
            patch={"didact.data.contexts:asked": _cut},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
