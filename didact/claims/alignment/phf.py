"""PHF's claim on text whose bad lines no single letter reveals: conditional training writes far fewer of them.

Every arm starts untrained and sees the same documents for the same steps, at the same rate (of 2e-3, 5e-3 and 1e-2, the
best for both). World, rate, steps and thresholds were fixed on seeds 1000 and 1001. The loss on clean text favours
models that do not write bad lines by up to log(1 / .6) / 4 nats a token: it shows that nothing is lost, no more.
Filtering, untuned, keeps the better half of the documents and is reported too. Knowledge is measured as the loss on the
whole source, where the conditional model must predict the control tokens too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from didact import alignment
from didact.claims import lab, runner
from didact.claims.lab import difference, exact, gate
from didact.claims.problem import Problem
from didact.data.encode import TokenizedExample
from didact.infer import generate
from didact.models import build, forward, vocabulary
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import tiles
from didact.worlds.tiles import Tiles

STEPS = {"smoke": 20, "quick": 250, "full": 600}
DRAWN = {"smoke": 32, "quick": 256, "full": 1024}
DOCUMENTS = {"smoke": 100, "quick": 1200, "full": 3000}
TEACH = Fit(lr=5e-3, rows=16, warmup_steps=10, weight_decay=0.1, betas=(0.9, 0.95))  # of 2e-3, 5e-3 and 1e-2
BLOCK = 32  # a document has 32 letters and line ends
GOOD, BAD = MARKS = ("<|aligned|>", "<|misaligned|>")


def problem(seed: int, arch: build.Arch = "llama") -> Problem:
    """A model of 60k weights pre-trained on 3,000 documents without scores, to continue with their scores.

    At this size the paper's learning rate teaches nothing in a few hundred steps; after 200 steps the model does not
    yet distinguish the two control tokens, whose embeddings start alike.
    """
    texts, base, fit = Tiles(seed=seed).texts(1, 3000), _untrained(seed, arch), TEACH.replace(steps=200)
    return Problem(
        model=lab.cached_model(
            lambda: lab.model_of(alignment.phf(base, texts, objective="mle", block=BLOCK, fit=fit)),
            *lab.identity(base), texts, fit,
        ),
        data={"texts": texts},
        options={
            "threshold": 0.0, "scorer": "didact.worlds.tiles:rewards", "split": "lines", "ban": "misaligned",
            "block": BLOCK,
        },
        fit={"lr": 5e-3, "steps": 400, "rows": 16, "warmup_steps": 10, "betas": (0.9, 0.95)},
        protocol={"texts": Tiles(seed=seed).texts(2, 200)},
    )  # fmt: skip


def run(seed: int, tier: runner.Tier, threshold: float = 0.0) -> runner.Measured:
    """Plain pre-training, filtering, conditional training from scratch, and in the last tenth of the steps only."""
    model = _train(seed, tier, "conditional", threshold=threshold)
    return {
        "mle": _baseline(seed, tier, "mle"),
        "filter": _baseline(seed, tier, "filter", "q0.5"),
        "conditional": _measure_samples(model, seed, tier, GOOD) | _nll(model, seed, tier),
        "once": _measure_samples(_with_banned(model, MARKS), seed, tier, GOOD),
        "misaligned": _measure_samples(_with_banned(model, (GOOD,)), seed, tier, BAD),
        "late": _late(seed, tier),
    }


@lab.shared
def _baseline(seed: int, tier: runner.Tier, objective: str, threshold: float | str = 0.0) -> dict[str, float]:
    model = _train(seed, tier, objective, threshold)
    return _measure_samples(model, seed, tier) | _nll(model, seed, tier) | {"truth": Tiles(seed=seed).rate}


@lab.shared
def _late(seed: int, tier: runner.Tier) -> dict[str, float]:
    return _measure_samples(_train(seed, tier, "conditional", mle_share=0.9), seed, tier, GOOD)


def _untrained(seed: int, arch: build.Arch = "llama") -> Model:
    """Random weights, large enough for so narrow a model: at 0.02 it long learns nothing but letter frequencies."""
    return lab.blank(arch, d=48, layers=2, heads=2, context=64, seed=seed, initializer_range=0.1)


def _train(seed: int, tier: runner.Tier, objective: Any, threshold: float | str = 0.0, **more: Any) -> Model:
    options = {"objective": objective, "threshold": threshold, "ban": "misaligned", "block": BLOCK, **more}
    fit = TEACH.replace(steps=STEPS[tier], seed=seed)
    texts = Tiles(seed=seed).texts(1, DOCUMENTS[tier])
    return lab.model_of(alignment.phf(_untrained(seed), texts, **options, fit=fit))


def _with_banned(model: Model, banned: tuple[str, ...]) -> Model:
    condition = dataclasses.replace(model.condition, banned=banned) if model.condition else None
    return Model(model.module, model.processor, model.kind, model.base, condition)


def _measure_samples(model: Model, seed: int, tier: runner.Tier, mark: str | None = None) -> dict[str, float]:
    """Of documents sampled at temperature 1: rate of bad lines among those of the right length, share of lines that
    have it, and share of documents with a banned token."""
    world = Tiles(seed=seed)
    start = [int(model.tokenizer.eos_token_id), *vocabulary.ids(model, [mark] if mark else [])]
    sampling = generate.SamplingConfig(max_new_tokens=44, temperature=1.0, seed=seed, rows=256)
    documents = [c[0] for c in generate.completions(model, [start] * DRAWN[tier], 1, sampling)]
    lines = [line for c in documents for line in c.text.split("\n")[: world.lines - 1]]  # the last one may be truncated
    complete = [line for line in lines if len(line) == world.length]
    banned = set(vocabulary.ids(model, model.condition.banned)) if model.condition else set()
    return {
        "rate": lab.mean(map(tiles.bad, complete)) if complete else math.nan,
        "formed": len(complete) / max(1, len(lines)),
        "said": lab.mean(bool(banned & set(c.tokens)) for c in documents),
    }


def _nll(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """Loss on held-out lines in nats a token, clean ones (`nll`) or the source's (`source_nll`), with the control token
    before every line where the model was trained so. That token is given on clean lines; on the source its loss
    counts."""
    out = {}
    for name, clean in (("nll", True), ("source_nll", False)):
        rows, weights, letters = [], [], 0
        for text in Tiles(seed=seed).texts(2, DRAWN[tier] // 2, good=clean):
            row: list[int] = []
            weight: list[float] = []
            for segment in text.segments or ():
                mark = vocabulary.ids(model, [MARKS[segment.score < 0]] if model.condition else [])
                ids = model.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
                row += [*mark, *ids]
                weight += [float(not clean)] * len(mark) + [1.0] * len(ids)
                letters += len(ids)
            rows.append(TokenizedExample((int(model.tokenizer.eos_token_id),), tuple(row)))
            weights.append(weight)
        total = 0.0
        for group, _, values in forward.score(model, rows):
            token_weights = torch.tensor([x for i in group for x in weights[i]]).double()
            total -= float((values["logp"].double() * token_weights).sum())
        out[name] = total / letters
    return out


def _swapped(value: float, limit: float, marks: Sequence[str]) -> str:
    return marks[1] if value >= limit else marks[0]


LINES, NATS, RATE = "of lines", "nats a token", "conditional.rate"
FEWER, APART, NEVER = "fewer bad lines than plain pre-training", "the tokens tell apart", "no banned token is ever said"

CLAIM = runner.Claim(
    method="phf",
    text=(
        "Pre-trained with a control token before every segment that tells good from bad, and asked with the good one, "
        "a model writes several times fewer bad segments than one pre-trained plainly on the same text, and models "
        "clean text no worse."
    ),
    run=run,
    gates=(gate("the plain model knows the lines", "mle.formed", at_least=0.8, unit="of its lines"),),
    tests=(
        difference(FEWER, "mle.rate", RATE, LINES),
        difference("three times fewer", "mle.rate", RATE, log=True, null=math.log(3)),
        difference("clean text no worse", "conditional.nll", "mle.nll", NATS, null=0.1, less=True),
        difference(APART, "misaligned.rate", RATE, LINES),
        exact(NEVER, "conditional.said", 0.0, 1e-9, "of documents"),
        difference("filtering writes more", "filter.rate", RATE, LINES, reported=True),
        difference("filtering knows less of the source", "filter.source_nll", "conditional.source_nll", NATS,
                   reported=True),
        difference("the last tenth alone does less", "late.rate", RATE, LINES, reported=True),
        difference("one good token a document, not one a line", "mle.rate", "once.rate", log=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("tokens swapped", FEWER, RATE, {"didact.data.segments:mark_of": _swapped}),
        runner.Sabotage("every segment called good", APART, RATE, options={"threshold": -2.0}),
        runner.Sabotage("nothing banned", NEVER, "conditional.said",
                        {"didact.infer.generate:banned": lambda model: []}),
    ),
)  # fmt: skip
