"""iTool's claim on requests whose calls are known: pairs of fragments teach hard calls more than tuning on.

The start is tuned on 150 demonstrations until it answers all of them and tuning on has stopped helping, which is what
the paper presupposes; of unseen hard requests, with two calls, it gets some wrong. From there all arms have the same
number of optimiser steps on the same demonstrations, or those of them they select. Every arm was tuned over three rates
on seeds 1000 and 1001 (with 200 demonstrations, which left too little to gain): 3e-5, 1e-4 and 3e-4 for preferences,
3e-4, 1e-3 and 3e-3 for tuning on. A gain of .05, the least that the card expects, is the smallest of interest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import alignment, registry
from didact.claims import lab, runner
from didact.claims.alignment import sabotages
from didact.claims.alignment import tool_rft_example as example
from didact.claims.lab import bound, difference, gate
from didact.evaluate import tool_calls
from didact.infer import tree
from didact.models.model import Model
from didact.types import Demo, Fit, Preference, Result
from didact.worlds import tools

GIVEN = 150
TUNING = {"smoke": 200, "quick": 300, "full": 300}
ROUNDS = {"smoke": 1, "quick": 2, "full": 3}
STEPS = {"smoke": 2, "quick": 30, "full": 30}  # of a round
ASKED = {"smoke": 24, "quick": 400, "full": 1500}
RATES = {"sft": 3e-3, "sft-hard": 1e-3, "tool-rft": 3e-5, "random": 3e-5, "response": 3e-5}
ARMS: dict[str, dict[str, Any]] = {
    "tool-rft": {},
    "random": {"select": "random"},
    "response": {"search.group": 1000, "search.depth": 1},
}

problem = example.problem


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), **broken: Any) -> runner.Measured:
    """The start, tuning on, tuning on what is hard, and the preferences; a sabotage changes tool-rft by `broken`."""
    start, demos, out = _start(seed, tier), _demos(seed), dict(_tuned(seed, tier))
    for arm in arms:
        fit = Fit(lr=RATES[arm], steps=STEPS[tier], rows=16, schedule="linear", seed=seed)
        how = example.SEARCH | ARMS[arm] | (broken if arm == "tool-rft" else {})
        result = alignment.tool_rft(
            start, demos, rounds=ROUNDS[tier], **registry.assemble(alignment.tool_rft, how), fit=fit
        )
        out[arm] = _measures(lab.model_of(result), seed, tier) | _pairs(result, demos)
    return out


def _demos(seed: int) -> list[Demo]:
    return tools.requests(GIVEN, 10 * seed, example.HARD)


def _start(seed: int, tier: runner.Tier) -> Model:
    return example.tuned(seed, _demos(seed), teach=example.TEACH.replace(steps=TUNING[tier]))


@lab.shared
def _tuned(seed: int, tier: runner.Tier) -> dict[str, dict[str, float]]:
    start, demos = _start(seed, tier), _demos(seed)
    total, count = lab.logp(start, demos)
    hard = [demos[int(i)] for i in np.argsort((total / count).numpy())[: int(0.3 * len(demos))]]
    out = {"start": _measures(start, seed, tier)}
    for arm, given in (("sft", demos), ("sft-hard", hard)):
        fit = Fit(lr=RATES[arm], steps=ROUNDS[tier] * STEPS[tier], rows=16, schedule="linear", seed=seed + 1)
        out[arm] = _measures(lab.tuned(start, given, fit), seed, tier)
        out[arm]["gain"] = out[arm]["hard"] - out["start"]["hard"]
    return out


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On requests no training saw, greedily: right calls of both sorts, and errors in hard ones by field."""
    asked = tools.requests(ASKED[tier], 10 * seed + 1, hard=0.7)
    calls = lab.sampled(model, [d.prompt for d in asked], example.ANSWER, temperature=0.0, rows=512)
    hard, easy = (
        tool_calls.tally([
            tool_calls.errors(c, d.completion) for d, c in zip(asked, calls, strict=True) if d.extra["hard"] is sort
        ])
        for sort in (True, False)
    )  # fmt: skip
    return {"hard": hard["exact"], "easy": easy["exact"], "function": hard["function"], "values": hard["values"]}


def _pairs(result: Result, demos: Sequence[Demo]) -> dict[str, float]:
    """How many pairs a searched request gives, and the share in which the chosen side begins the right answer and the
    rejected does not."""
    truth = {d.prompt: d.completion for d in demos}
    valid = []
    for r in result.records or []:
        assert isinstance(r, Preference)
        prompt = next(p for p in truth if r.prompt.startswith(p))
        before = r.prompt[len(prompt) :]
        good = [tool_calls.on_track(before + side, truth[prompt]) for side in (r.chosen, r.rejected)]
        valid.append(good[0] and not good[1])
    searched = sum(row["selected"] for row in result.findings["rounds"])
    return {"pairs": len(valid) / searched, "valid": lab.mean(valid)}


def _any(nodes: Sequence[tree.Node], *args: Any, **more: Any) -> list[tree.Pair]:
    """Every two neighbours, whatever they are worth."""
    return [tree.Pair(n.children[0], n.children[1]) for n in nodes if len(n.children) > 1]


HARD, EASY, ONLY = "of hard requests", "of easy requests", {"arms": ("tool-rft",)}
RIGHT, UNLIKELY = "pairs tell right from wrong", "unlikely requests give more pairs than others"
PATCHED = "didact.infer.tree:pairs"

CLAIM = runner.Claim(
    method="tool-rft",
    text=(
        "After supervised fine-tuning on tool calls, preferences between fragments, found by a tree search on the "
        "requests whose answers the model finds least likely, raise exact calls on hard requests more than as many "
        "steps of further fine-tuning, without losing the easy ones."
    ),
    run=run,
    gates=(
        gate("the start answers easy requests", "start.easy", at_least=0.8, unit=EASY),
        gate("and some hard ones", "start.hard", at_least=0.1, unit=HARD),
        gate("fine-tuning has stopped helping", "sft.gain", at_most=0.05, unit=HARD),
        gate("but not all", "start.hard", at_most=0.85, unit=HARD),
    ),
    tests=(
        difference("more hard calls right than by tuning on", "tool-rft.hard", "sft.hard", HARD, margin=0.05),
        difference("easy calls stay right", "tool-rft.easy", "start.easy", EASY, null=-0.02),
        bound(RIGHT, "tool-rft.valid", 0.9, "of pairs"),
        difference(UNLIKELY, "tool-rft.pairs", "random.pairs", "pairs a searched request"),
        difference("more hard calls right than at the start", "tool-rft.hard", "start.hard", HARD, reported=True),
        difference("than by tuning on what is hard", "tool-rft.hard", "sft-hard.hard", HARD, reported=True),
        difference("than with random requests", "tool-rft.hard", "random.hard", HARD, reported=True),
        difference("than with pairs of whole answers", "tool-rft.hard", "response.hard", HARD, reported=True),
        difference("fewer wrong values", "tool-rft.values", "start.values", HARD, less=True, reported=True),
        difference("fewer wrong functions", "tool-rft.function", "start.function", HARD, less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("chosen and rejected swapped", RIGHT, "tool-rft.valid", {PATCHED: sabotages.turned}, ONLY),
        runner.Sabotage("any two fragments are a pair", RIGHT, "tool-rft.valid", {PATCHED: _any}, ONLY),
        runner.Sabotage("the easiest are searched", UNLIKELY, "tool-rft.pairs",
                        options={"arms": ("tool-rft", "random"), "select": "easy"}),
    ),
)  # fmt: skip
