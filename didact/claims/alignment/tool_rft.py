"""iTool's claim on requests whose calls are known: pairs of fragments teach hard calls more than tuning on.

The start is tuned on 150 demonstrations until it answers all of them and tuning on has stopped helping, which is what
the paper presupposes; of unseen hard requests, with two calls, it gets some wrong. From there all arms have the same
number of optimiser steps on the same demonstrations, or those of them they select. Every arm was tuned over three rates
on seeds 1000 and 1001 (with 200 demonstrations, which left too little to gain): 3e-5, 1e-4 and 3e-4 for preferences,
3e-4, 1e-3 and 3e-3 for tuning on. A gain of .05, the least that the card expects, is the smallest of interest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import alignment, baselines, registry
from didact.claims import runner, verdict
from didact.claims.alignment import sabotages
from didact.claims.alignment import tool_rft_example as example
from didact.data import encode
from didact.evaluate import tool_calls
from didact.infer import generate, tree
from didact.learn import episodes
from didact.models import forward
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


def problem(seed: int) -> Any:
    """What `didact run tool-rft` teaches when given no model and data."""
    return example.problem(seed)


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), **broken: Any) -> dict[str, dict[str, float]]:
    """The start, tuning on, tuning on what is hard, and the preferences; a sabotage changes tool-rft by `broken`."""
    start, out = _start(seed, tier), dict(_tuned(seed, tier))
    for arm in arms:
        fit = Fit(lr=RATES[arm], steps=STEPS[tier], rows=16, schedule="linear", seed=seed)
        how = example.SEARCH | ARMS[arm] | (broken if arm == "tool-rft" else {})
        result = alignment.tool_rft(
            start, _demos(seed), rounds=ROUNDS[tier], **registry.assemble(alignment.tool_rft, how), fit=fit
        )
        out[arm] = _measures(runner.taught(result), seed, tier) | _pairs(result, _demos(seed))
    return out


@functools.lru_cache(maxsize=64)
def _start(seed: int, tier: runner.Tier) -> Model:
    """Shared by the arms of a seed and by its sabotages, none of which touches this training; so are the next."""
    return example.tuned(seed, _demos(seed), teach=example.TEACH.replace(steps=TUNING[tier]))


@functools.lru_cache(maxsize=64)
def _tuned(seed: int, tier: runner.Tier) -> tuple[tuple[str, dict[str, float]], ...]:
    start, demos = _start(seed, tier), _demos(seed)
    pairs = [(d.prompt, d.completion) for d in demos]
    total, count = forward.row_logp(start, encode.rows(start.tokenizer, pairs, start.kind, start.context))
    nll = (-total / count).numpy()
    hard = [demos[int(i)] for i in np.argsort(-nll)[: int(0.3 * len(demos))]]
    made = [("start", _measures(start, seed, tier))]
    for name, given in (("sft", demos), ("sft-hard", hard)):
        fit = Fit(lr=RATES[name], steps=ROUNDS[tier] * STEPS[tier], rows=16, schedule="linear", seed=seed + 1)
        made.append((name, _measures(runner.taught(baselines.sft(start, given, fit=fit)), seed, tier)))
        made[-1][1]["gain"] = made[-1][1]["hard"] - made[0][1]["hard"]
    return tuple(made)


def _demos(seed: int) -> list[Demo]:
    return tools.requests(GIVEN, 10 * seed, example.HARD)


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On requests no training saw, greedily: right calls of both sorts, and errors in hard ones by field."""
    asked = tools.requests(ASKED[tier], 10 * seed + 1, hard=0.7)
    made = generate.generate(model, [d.prompt for d in asked], example.ANSWER, rows=512)
    wrong = {
        sort: tool_calls.tally([
            tool_calls.errors(m, d.completion) for d, m in zip(asked, made, strict=True) if d.extra["hard"] is sort
        ])
        for sort in (True, False)
    }  # fmt: skip
    return {"hard": wrong[True]["exact"], "easy": wrong[False]["exact"], "function": wrong[True]["function"],
            "values": wrong[True]["values"]}  # fmt: skip


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
    return {"pairs": len(valid) / searched, "valid": float(np.mean(valid))}


def _any(nodes: Sequence[tree.Node], *args: Any, **more: Any) -> list[tree.Pair]:
    """Every two neighbours, whatever they are worth."""
    return [tree.Pair(n.children[0], n.children[1]) for n in nodes if len(n.children) > 1]


def _difference(name: str, b: str, metric: str = "hard", **more: Any) -> verdict.Test:
    unit = "of hard requests" if metric != "easy" else "of easy requests"
    return verdict.Test(name=name, kind="difference", a=f"tool-rft.{metric}", b=f"{b}.{metric}", unit=unit, **more)


ONLY = {"arms": ("tool-rft",)}
CLAIM = runner.Claim(
    method="tool-rft",
    text=(
        "After supervised fine-tuning on tool calls, preferences between fragments, found by a tree search on the "
        "requests whose answers the model finds least likely, raise exact calls on hard requests more than as many "
        "steps of further fine-tuning, without losing the easy ones."
    ),
    run=run,
    gates=(
        verdict.gate("the start answers easy requests", "start.easy", at_least=0.8, unit="of easy requests"),
        verdict.gate("and some hard ones", "start.hard", at_least=0.1, unit="of hard requests"),
        verdict.gate("fine-tuning has stopped helping", "sft.gain", at_most=0.05, unit="of hard requests"),
        verdict.gate("but not all", "start.hard", at_most=0.85, unit="of hard requests"),
    ),
    tests=(
        _difference("more hard calls right than by tuning on", "sft", margin=0.05),
        _difference("easy calls stay right", "start", "easy", null=-0.02),
        verdict.Test(
            name="pairs tell right from wrong", kind="bound", a="tool-rft.valid", null=0.9, unit="of pairs"
        ),
        verdict.Test(
            name="unlikely requests give more pairs than others", kind="difference", a="tool-rft.pairs",
            b="random.pairs", unit="pairs a searched request",
        ),
        _difference("more hard calls right than at the start", "start", gates="none"),
        _difference("than by tuning on what is hard", "sft-hard", gates="none"),
        _difference("than with random requests", "random", gates="none"),
        _difference("than with pairs of whole answers", "response", gates="none"),
        _difference("fewer wrong values", "start", "values", direction="less", gates="none"),
        _difference("fewer wrong functions", "start", "function", direction="less", gates="none"),
    ),
    sabotages=(
        runner.Sabotage(
            name="chosen and rejected swapped", breaks="pairs tell right from wrong",
            patch={"didact.infer.tree:pairs": sabotages.turned}, metric="tool-rft.valid", options=ONLY,
        ),
        runner.Sabotage(
            name="any two fragments are a pair", breaks="pairs tell right from wrong",
            patch={"didact.infer.tree:pairs": _any}, metric="tool-rft.valid", options=ONLY,
        ),
        runner.Sabotage(
            name="the easiest are searched", breaks="unlikely requests give more pairs than others",
            metric="tool-rft.pairs", options={"arms": ("tool-rft", "random"), "select": "easy"},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
