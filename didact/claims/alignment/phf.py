"""PHF's claim on text whose bad lines no single letter shows: conditional training writes far fewer of them.

Every arm begins untrained and sees the same documents for the same steps, at the same rate (of 2e-3, 5e-3 and 1e-2 the
one that is best for both). World, rate, steps and thresholds were fixed on seeds 1000 and 1001. The loss on clean text
favours what does not write bad lines, log(1 / .6) / 4 nats a token at most: it shows that nothing is lost, no more.
What else the paper tries stands beside, untuned: filtering keeps the better half of the documents, unlikelihood has
the weight 1. What a model knows is measured on the whole source, where the conditional one must say the tokens too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from didact import alignment
from didact.claims import runner, verdict
from didact.claims.alignment import phf_example
from didact.data.encode import TokenizedExample
from didact.infer import generate
from didact.learn import episodes
from didact.models import forward, vocabulary
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import tiles
from didact.worlds.tiles import Tiles

STEPS = {"smoke": 20, "quick": 300, "full": 600}
DRAWN = {"smoke": 32, "quick": 512, "full": 1024}
RATE = 5e-3  # of 2e-3, 5e-3 and 1e-2
GOOD, BAD = MARKS = ("<|aligned|>", "<|misaligned|>")


def problem(seed: int) -> Any:
    """What `didact run phf` teaches when given no model and data."""
    return phf_example.problem(seed)


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, threshold: float = 0.0) -> dict[str, dict[str, float]]:
    """Plain pre-training, conditional from scratch, and conditional in the last tenth only."""
    model = _taught(seed, tier, "conditional", threshold=threshold)
    once = dataclasses.replace(model.condition, banned=MARKS) if model.condition else None
    other = dataclasses.replace(model.condition, banned=(GOOD,)) if model.condition else None
    late = _late(seed, tier)
    both = {"nll": _nll(model, seed, tier), "source_nll": _nll(model, seed, tier, good=False)}
    return {
        "mle": _beside(seed, tier, "mle"),
        "filter": _beside(seed, tier, "filter", threshold="q0.5"),
        "unlikelihood": _beside(seed, tier, "unlikelihood"),
        "conditional": _writes(model, seed, tier, GOOD) | both,
        "once": _writes(_asked(model, once), seed, tier, GOOD),
        "misaligned": _writes(_asked(model, other), seed, tier, BAD),
        "late": late,
    }


@functools.lru_cache(maxsize=64)
def _beside(seed: int, tier: runner.Tier, objective: str, threshold: float | str = 0.0) -> dict[str, float]:
    """Shared by a seed and its sabotages, none of which touches this training; so is the next."""
    model = _taught(seed, tier, objective, threshold=threshold)
    both = {"nll": _nll(model, seed, tier), "source_nll": _nll(model, seed, tier, good=False)}
    return _writes(model, seed, tier) | both | {"truth": Tiles(seed=seed).rate}


@functools.lru_cache(maxsize=64)
def _late(seed: int, tier: runner.Tier) -> dict[str, float]:
    return _writes(_taught(seed, tier, "conditional", mle_share=0.9), seed, tier, GOOD)


def _taught(seed: int, tier: runner.Tier, objective: Any, threshold: float | str = 0.0, **more: Any) -> Model:
    fit = Fit(
        lr=RATE, steps=STEPS[tier], rows=16, warmup_steps=10, weight_decay=0.1, betas=(0.9, 0.95), seed=seed
    )  # fmt: skip
    result = alignment.phf(
        phf_example.untrained(seed), Tiles(seed=seed).texts(1, 3000), objective=objective, threshold=threshold,
        ban="misaligned", block=phf_example.BLOCK, fit=fit, **more,
    )  # fmt: skip
    model = result.models["model"]
    assert isinstance(model, Model)
    return model


def _asked(model: Model, condition: Any) -> Model:
    return Model(model.module, model.processor, model.kind, model.base, condition)


def _writes(model: Model, seed: int, tier: runner.Tier, mark: str | None = None) -> dict[str, float]:
    """Of documents sampled at temperature 1: bad lines among those of the right length, how many those are, and how
    often a document has a token that is banned."""
    world = Tiles(seed=seed)
    start = [int(model.tokenizer.eos_token_id), *vocabulary.ids(model, [mark] if mark else [])]
    how = generate.SamplingConfig(max_new_tokens=44, temperature=1.0, seed=seed, rows=256)
    made = [c[0] for c in generate.completions(model, [start] * DRAWN[tier], 1, how)]
    lines = [line for c in made for line in c.text.split("\n")[: world.lines - 1]]  # the last may be cut
    whole = [line for line in lines if len(line) == world.length]
    never = set(vocabulary.ids(model, model.condition.banned)) if model.condition else set()
    return {
        "rate": float(np.mean([tiles.bad(line) for line in whole])) if whole else math.nan,
        "formed": len(whole) / max(1, len(lines)),
        "said": float(np.mean([bool(never & set(c.tokens)) for c in made])),
    }


def _nll(model: Model, seed: int, tier: runner.Tier, good: bool = True) -> float:
    """Nats a token on lines no training saw, clean ones or the source's; asked as it was taught, so with the token of
    its kind before every line. Before clean lines it is given; of the source it is a part, which costs too."""
    rows, kept, letters = [], [], 0
    for text in Tiles(seed=seed).texts(2, DRAWN[tier] // 2, good=good):
        row: list[int] = []
        count: list[float] = []
        for segment in text.segments or ():
            mark = vocabulary.ids(model, [MARKS[segment.score < 0]] if model.condition else [])
            ids = model.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            row += [*mark, *ids]
            count += [float(not good)] * len(mark) + [1.0] * len(ids)
            letters += len(ids)
        rows.append(TokenizedExample((int(model.tokenizer.eos_token_id),), tuple(row)))
        kept.append(count)
    total = 0.0
    for group, _, values in forward.score(model, rows):
        total -= float((values["logp"].double() * torch.tensor([x for i in group for x in kept[i]]).double()).sum())
    return total / letters


def _swapped(value: float, limit: float, marks: Sequence[str]) -> str:
    return marks[1] if value >= limit else marks[0]


def _difference(name: str, a: str, b: str, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="difference", a=a, b=b, **more)


CLAIM = runner.Claim(
    method="phf",
    text=(
        "Pre-trained with a control token before every segment that tells good from bad, and asked with the good one, "
        "a model writes several times fewer bad segments than one pre-trained plainly on the same text, and models "
        "clean text no worse."
    ),
    run=run,
    gates=(verdict.gate("the plain model knows the lines", "mle.formed", at_least=0.8, unit="of its lines"),),
    tests=(
        _difference("fewer bad lines than plain pre-training", "mle.rate", "conditional.rate", unit="of lines"),
        _difference(
            "three times fewer", "mle.rate", "conditional.rate", transform="log", null=math.log(3), unit="log ratio"
        ),
        _difference(
            "clean text no worse", "conditional.nll", "mle.nll", null=0.1, direction="less", unit="nats a token"
        ),
        _difference("the tokens tell apart", "misaligned.rate", "conditional.rate", unit="of lines"),
        verdict.Test(
            name="no banned token is ever said", kind="exact", a="conditional.said", null=0.0, margin=1e-9,
            unit="of documents",
        ),
        _difference("filtering writes more", "filter.rate", "conditional.rate", gates="none", unit="of lines"),
        _difference(
            "unlikelihood writes more", "unlikelihood.rate", "conditional.rate", gates="none", unit="of lines"
        ),
        _difference(
            "filtering knows less of the source", "filter.source_nll", "conditional.source_nll", gates="none",
            unit="nats a token",
        ),
        _difference(
            "unlikelihood knows less of the source", "unlikelihood.source_nll", "conditional.source_nll", gates="none",
            unit="nats a token",
        ),
        _difference("the last tenth alone does less", "late.rate", "conditional.rate", gates="none", unit="of lines"),
        _difference(
            "one good token a document, not one a line", "mle.rate", "once.rate", gates="none", transform="log",
            unit="log ratio",
        ),
    ),
    sabotages=(
        runner.Sabotage(
            name="tokens swapped", breaks="fewer bad lines than plain pre-training",
            patch={"didact.data.segments:mark_of": _swapped}, metric="conditional.rate",
        ),
        runner.Sabotage(
            name="every segment called good", breaks="the tokens tell apart", options={"threshold": -2.0},
            metric="conditional.rate",
        ),
        runner.Sabotage(
            name="nothing banned", breaks="no banned token is ever said",
            patch={"didact.infer.generate:banned": lambda model: []}, metric="conditional.said",
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
