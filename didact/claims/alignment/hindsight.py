"""CoH's claim on letters to be sorted: asked for a good answer it is as good as fine-tuning on the good ones, asked for
a bad one it is worse, and it mends a bad draft, which models that never saw two answers in turn do not.

All arms start from one model that learnt good and bad answers alike, take the same number of steps at the same rate (of
1e-3 and 3e-3), and about as many tokens of answers a step: a chain has one or two. World, steps, rate and thresholds
were fixed on seeds 1000 and 1001.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import alignment
from didact.claims import runner, verdict
from didact.claims.alignment import hindsight_example
from didact.data import chains, encode
from didact.data.templates import Condition
from didact.infer import generate
from didact.learn import episodes
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import sorting
from didact.worlds.sorting import Sorting

STEPS = {"smoke": (10, 5), "quick": (300, 400), "full": (600, 800)}  # of the start, of an arm
ASKED = {"smoke": 16, "quick": 256, "full": 512}
RATE = 3e-3  # of 1e-3 and 3e-3
GOOD, BAD = hindsight_example.GOOD, hindsight_example.BAD
ALL = ("p", "n", "pn", "np")


def problem(seed: int) -> Any:
    """What `didact run hindsight` teaches when given no model and data."""
    return hindsight_example.problem(seed)


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, chains: Sequence[str] = ALL, bad: str = BAD) -> dict[str, dict[str, float]]:
    """Chain of hindsight, the same without chains of two answers, and fine-tuning on the chosen answers."""
    return {
        "coh": _measures(_taught(seed, tier, 16, chains=chains, bad=(bad,)), seed, tier, bad),
        "csft": _conditional(seed, tier),
        "sft": _plain(seed, tier),
    }


@functools.lru_cache(maxsize=64)
def _start(seed: int, tier: runner.Tier) -> Model:
    """Shared by the arms of a seed and by its sabotages, none of which touches this training; so are the next two."""
    return hindsight_example.start(seed, hindsight_example.TEACH.replace(steps=STEPS[tier][0]))


@functools.lru_cache(maxsize=64)
def _conditional(seed: int, tier: runner.Tier) -> dict[str, float]:
    return _measures(_taught(seed, tier, 24, chains=("p", "n")), seed, tier, BAD)


@functools.lru_cache(maxsize=64)
def _plain(seed: int, tier: runner.Tier) -> dict[str, float]:
    return _measures(_taught(seed, tier, 24, chains=("p",), good=("",), bad=("",)), seed, tier, "")


def _taught(seed: int, tier: runner.Tier, rows: int, **more: Any) -> Model:
    fit = Fit(lr=RATE, steps=STEPS[tier][1], rows=rows, warmup_steps=10, betas=(0.9, 0.95), seed=seed)
    options = {"good": (GOOD,), "bad": (BAD,), **more}
    model = alignment.hindsight(
        _start(seed, tier), Sorting(seed=seed).pairs(1, 2000), fit=fit, **options
    ).models["model"]  # fmt: skip
    assert isinstance(model, Model)
    return model


def _measures(model: Model, seed: int, tier: runner.Tier, bad: str) -> dict[str, float]:
    """Mean errors on prompts no training saw: greedy answers as the model is asked; sampled ones (temperature 1), also
    after the bad phrase; and greedy answers after a sampled bad draft and the good phrase, less the draft's."""
    prompts = [d.prompt for d in Sorting(seed=seed).demos(2, ASKED[tier])]
    worse = Model(model.module, model.processor, model.kind, None, Condition(after=bad) if bad else None)
    drafts = _answers(worse, prompts, seed, 1.0)
    good = model.condition.after if model.condition else ""
    mended = []
    for prompt, draft in zip(prompts, drafts, strict=True):
        row, _ = encode.chain(model.tokenizer, prompt, [(bad, draft or "-"), (good, "")], model.kind, model.context)
        mended.append([*row.prompt, *row.completion])
    drafted, left = _errors(prompts, drafts), _errors(prompts, _answers(model, mended, seed, 0.0))
    return {
        "errors": _errors(prompts, _answers(model, prompts, seed, 0.0)),
        "sampled": _errors(prompts, _answers(model, prompts, seed, 1.0)),
        "bad": drafted,
        "mended": left,
        "gain": drafted - left,
    }


def _answers(model: Model, prompts: Any, seed: int, temperature: float) -> list[str]:
    how = generate.SamplingConfig(max_new_tokens=12, temperature=temperature, seed=seed, rows=256)
    return [c[0].text for c in generate.completions(model, prompts, 1, how)]


def _errors(prompts: Sequence[str], answers: Sequence[str]) -> float:
    return float(np.mean([sorting.errors(p, a) for p, a in zip(prompts, answers, strict=True)]))


_chained = chains.chained  # the intact part, which a sabotage wraps


def _swapped(group: Any, kind: str, good: str, bad: str) -> Any:
    return _chained(group, kind, good=bad, bad=good)


def _difference(name: str, a: str, b: str, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="difference", a=a, b=b, unit="errors an answer", **more)


CLAIM = runner.Claim(
    method="hindsight",
    text=(
        "Fine-tuned on chains of good and bad answers with words for each, a model asked for the good kind makes no "
        "more errors than one fine-tuned on the good answers; the words steer it, and it mends its own bad draft."
    ),
    run=run,
    gates=(verdict.gate("fine-tuning can sort", "sft.errors", at_most=0.5, unit="errors an answer"),),
    tests=(
        _difference("no more errors than fine-tuning", "coh.errors", "sft.errors", null=0.05, direction="less"),
        _difference("the words steer", "coh.bad", "coh.sampled"),
        verdict.Test(name="a bad draft is mended", kind="bound", a="coh.gain", unit="errors an answer"),
        _difference("mended better than without chains of two", "coh.mended", "csft.mended", direction="less"),
        _difference("fewer errors than conditional fine-tuning", "coh.errors", "csft.errors", direction="less",
                    gates="none"),
        _difference("fewer errors when sampled", "coh.sampled", "sft.sampled", direction="less", gates="none"),
    ),
    sabotages=(
        runner.Sabotage(
            name="phrases swapped", breaks="the words steer", metric="coh.sampled",
            patch={"didact.data.chains:chained": _swapped},
        ),
        runner.Sabotage(
            name="one phrase for both", breaks="the words steer", metric="coh.sampled", options={"bad": GOOD},
        ),
        runner.Sabotage(
            name="the good answer always first", breaks="mended better than without chains of two",
            metric="coh.mended", options={"chains": ("pn",)},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
