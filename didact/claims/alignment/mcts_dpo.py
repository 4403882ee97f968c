"""MCTS-DPO's claim on chains of arithmetic: preferences between steps found by tree search teach more than tuning on.

The training sees final answers alone; that every step of a chain can be checked serves to measure. All arms search,
sample or tune on the same problems from the same start, which slips in some steps. The arms that sample draw about
as many tokens (they are reported). Every arm was tuned over two rates on seed 1000, for DPO 1e-4 and 3e-4, for tuning
on 3e-4 and 1e-3; beta and the passes over a round's pairs, .5 and 4 of .1 or .5 and 1 or 4, were chosen with them (and
on seed 1001), for all arms that learn from preferences. With the paper's beta of .1 the margin they are trained to is
five times as wide, and the starts' steps drift under it. Solutions get three in ten operations wrong, more often than
not, and so does the start, however long it is tuned.

C is 1 throughout: a model of this size cannot judge itself, and self-evaluation is not tested here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import alignment, baselines, registry
from didact.claims import runner, verdict
from didact.claims.alignment import mcts_dpo_example as example
from didact.claims.alignment import sabotages
from didact.infer import generate, tree
from didact.learn import episodes
from didact.models.model import Model
from didact.types import Demo, Fit, Preference, Result
from didact.worlds import arithmetic

ROUNDS = {"smoke": 1, "quick": 4, "full": 8}
BATCH = {"smoke": 8, "quick": 256, "full": 256}
ASKED = {"smoke": 64, "quick": 512, "full": 2048}
TUNING = {"smoke": 20, "quick": 450, "full": 450}
STEPS = {"smoke": 2, "quick": 25, "full": 25}  # of a round, to tune on
DRAWS = 5  # whole solutions a problem: as many tokens as a tree costs
RATES = {"sft": 1e-3, "star": 3e-4, "online": 1e-4, "offline": 1e-4, "instance": 1e-4}
PASSES, BETA = 4, 0.5
ARMS: dict[str, dict[str, Any]] = {
    "online": {},
    "offline": {"online": False},
    "instance": {"search.depth": 1, "search.root_actions": DRAWS, "search.step_tokens": example.SOLUTION},
}


def problem(seed: int) -> Any:
    """What `didact run mcts-dpo` teaches when given no model and data."""
    return example.problem(seed)


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), **broken: Any) -> dict[str, dict[str, float]]:
    """The start, tuning on, and on its own right solutions, and preferences; sabotages change options by `broken`."""
    start, count = _start(seed, tier), ROUNDS[tier] * BATCH[tier]
    problems = example.chains(seed, 1, count)
    out = {"start": _measures(start, seed, tier)} | dict(_tuned(seed, tier))
    for arm in arms:
        fit = Fit(lr=RATES[arm], epochs=PASSES, rows=16, schedule="constant", seed=seed)
        how = registry.assemble(alignment.mcts_dpo, example.SEARCH | {"beta": BETA} | ARMS[arm] | broken)
        result = alignment.mcts_dpo(start, problems, rounds=ROUNDS[tier], batch=BATCH[tier], **how, fit=fit)
        out[arm] = _measures(runner.taught(result), seed, tier) | _pairs(result)
    return out


@functools.lru_cache(maxsize=64)
def _start(seed: int, tier: runner.Tier) -> Model:
    """Shared by the arms of a seed and by its sabotages, none of which touches this training; so are the next."""
    return example.tuned(seed, teach=example.TEACH.replace(steps=TUNING[tier]))


@functools.lru_cache(maxsize=64)
def _tuned(seed: int, tier: runner.Tier) -> tuple[tuple[str, dict[str, float]], ...]:
    """Tuning on, and on the right ones of the start's own solutions (Zelikman et al., 2022)."""
    start, made = _start(seed, tier), {}
    problems = example.chains(seed, 1, ROUNDS[tier] * BATCH[tier])
    how = generate.SamplingConfig(max_new_tokens=example.SOLUTION, temperature=1.0, seed=seed, rows=512)
    drawn = generate.sample(start, [d.prompt for d in problems], DRAWS, how)
    own = [
        Demo(prompt=d.prompt, completion=text)
        for d, texts in zip(problems, drawn, strict=True)
        for text in dict.fromkeys(texts)
        if _answer(text) == (d.answers or [""])[0]
    ]
    for name, given in (("sft", example.chains(seed, 0, example.DEMOS, flawed=True)), ("star", own)):
        fit = Fit(lr=RATES[name], steps=ROUNDS[tier] * STEPS[tier], rows=32, schedule="linear", seed=seed + 1)
        made[name] = _measures(runner.taught(baselines.sft(start, given, fit=fit)), seed, tier)
    made["sft"]["gain"] = made["sft"]["right"] - _measures(start, seed, tier)["right"]
    return tuple(made.items())


def _answer(text: str) -> str:
    return text.rpartition("#")[2].strip()


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On problems no training saw, greedily: right answers, and sound steps among those shown."""
    asked = example.chains(seed, 2, ASKED[tier])
    made = generate.generate(model, [d.prompt for d in asked], example.SOLUTION, rows=512)
    steps = [ok for d, m in zip(asked, made, strict=True) for ok in arithmetic.sound(d.prompt, m, example.MODULUS)]
    right = [_answer(m) == (d.answers or [""])[0] for d, m in zip(asked, made, strict=True)]
    return {"right": float(np.mean(right)), "sound": float(np.mean(steps)) if steps else 0.0}


def _pairs(result: Result) -> dict[str, float]:
    """How many pairs, and of those in which just one step is sound, the share in which it is the better one."""
    sides = [
        [_sound(r, side) for side in (r.chosen, r.rejected)] for r in result.records or [] if isinstance(r, Preference)
    ]
    decided = [a for a, b in sides if a != b]
    told = result.findings["rounds"]
    return {
        "pairs": float(len(sides)),
        "decided": len(decided) / len(sides),
        "better_sound": float(np.mean(decided)) if decided else 0.5,
        "tokens": float(sum(row["tokens"] for row in told)),
        "searched_right": float(told[-1]["right"]),
    }


def _sound(record: Preference, side: str) -> bool:
    """Whether the pair's step, or all steps of a whole solution, are sound after what stands before them."""
    asked, _, before = record.prompt.partition("=")
    done = len(arithmetic.sound(asked, before, example.MODULUS))
    steps = arithmetic.sound(asked, before.strip() + side.strip(), example.MODULUS)[done:]
    return bool(steps) and all(steps)


def _against(node: tree.Node, likely: float, right: bool | None, *rest: Any) -> float:
    return likely + (0.0 if right is None else -1.0 if right else 1.0)


def _by_prior(node: tree.Node, top: tree.Node, how: tree.SearchConfig) -> None:
    """Visits alone: Q is the prior, whatever the search found."""
    while True:
        node.visits += 1
        if node is top or node.parent is None:
            return
        node.q = node.step.prior
        node = node.parent


def _difference(name: str, b: str, metric: str = "right", **more: Any) -> verdict.Test:
    unit = "of problems" if metric == "right" else "of steps"
    return verdict.Test(name=name, kind="difference", a=f"online.{metric}", b=f"{b}.{metric}", unit=unit, **more)


ONLY: dict[str, Any] = {"arms": ("online",)}
CLAIM = runner.Claim(
    method="mcts-dpo",
    text=(
        "Preferences between single steps, found by a tree search with the policy and the final answer alone, teach a "
        "model that works in steps more than going on fine-tuning on demonstrations does, and searching with the "
        "policy as it is teaches no less than searching once."
    ),
    run=run,
    gates=(
        verdict.gate("the start solves some problems", "start.right", at_least=0.3, unit="of problems"),
        verdict.gate("fine-tuning has stopped helping", "sft.gain", at_most=0.05, unit="of problems"),
        verdict.gate("and not all", "start.right", at_most=0.9, unit="of problems"),
    ),
    tests=(
        _difference("more right than tuning on", "sft"),
        _difference("more right than at the start", "start"),
        verdict.Test(
            name="the better step is the sound one", kind="bound", a="online.better_sound", null=0.9,
            unit="of pairs with one sound step",
        ),
        _difference("more right than preferences between solutions", "instance", gates="none"),
        _difference("more right than searching once", "offline", gates="none"),
        _difference("more right than tuning on own right solutions", "star", gates="none"),
        _difference("more sound steps than tuning on", "sft", "sound", gates="none"),
    ),
    sabotages=(
        runner.Sabotage(
            name="better and worse swapped", breaks="more right than at the start",
            patch={"didact.infer.tree:pairs": sabotages.turned}, metric="online.right", options=ONLY,
        ),
        runner.Sabotage(
            name="wrong answers are rewarded, and no tree is dropped", breaks="more right than at the start",
            patch={"didact.learn.critics:valued": _against}, metric="online.right",
            options=ONLY | {"filter": False},
        ),
        runner.Sabotage(
            name="Q is the prior, and no tree is dropped", breaks="the better step is the sound one",
            patch={"didact.infer.tree:back_up": _by_prior}, metric="online.better_sound",
            options=ONLY | {"filter": False},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
