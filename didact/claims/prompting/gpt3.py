"""The claim of gpt3: a model infers tasks from demonstrations, more so when it is larger; and the tools are sound.

A: nouns translated into a hidden language per class; held-out tasks; two sizes. B: choices of unequal frequency.
C: a quiz that is planted in the text, audited and removed. D: attention within a band, wide and narrow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import processors

from didact import prompting
from didact.claims import runner, verdict
from didact.claims.problem import Problem
from didact.data import demonstrations
from didact.data.encode import TokenizedExample
from didact.infer import rank
from didact.learn import episodes, language
from didact.models import build, forward, mixers
from didact.models.model import Model
from didact.types import Demo, Fit, Result, Text
from didact.worlds import tasks

SHOTS = (0, 1, 4, 16)
KINDS, NOUNS, BLOCKS = 4, 6, 6  # of D: names, nouns, blocks a row
FAR = 5  # how far back D's name stands


@dataclass(frozen=True)
class Size:
    """Of a tier: steps of A, of B and C, of D; held-out tasks of A."""

    steps: int
    facts: int
    band: int
    tasks: int


SIZES = {
    "smoke": Size(steps=20, facts=10, band=5, tasks=1),
    "quick": Size(steps=220, facts=100, band=130, tasks=6),
    "full": Size(steps=400, facts=200, band=150, tasks=12),
}


def problem(seed: int) -> Problem:
    """What `didact run gpt3` measures when given no model and data."""
    from didact.claims.prompting import gpt3_example

    return gpt3_example.problem(seed)


def problem_clean(seed: int) -> Problem:
    """What `didact run gpt3.clean` cleans."""
    from didact.claims.prompting import gpt3_example

    return gpt3_example.problem_clean(seed)


def problem_pretrain(seed: int) -> Problem:
    """What `didact run gpt3.pretrain` trains on."""
    from didact.claims.prompting import gpt3_example

    return gpt3_example.problem_pretrain(seed)


def run(seed: int, tier: str, parts: Sequence[str] = ("A", "B", "C", "D"), shuffled: bool = False) -> runner.Measured:
    """One seed of the parts asked for."""
    size = SIZES[tier]
    with episodes.one_thread():
        # Competence, by what no part and no sabotage touches: the model has learnt the words it is asked for.
        arms = {"reader": {"named": named(translator(seed, size.steps, 64), seed)}}
        if "A" in parts:
            arms |= in_context(seed, size, shuffled)
        if "B" in parts:
            arms |= scoring(seed, size)
        if "C" in parts:
            arms |= contamination(seed, size)
        if "D" in parts:
            arms |= bands(seed, size)
    return arms


# --- A: K demonstrations, two sizes --------------------------------------------------------------


def in_context(seed: int, size: Size, shuffled: bool) -> dict[str, dict[str, float]]:
    """Accuracy on held-out tasks at every K, and on named tasks with and without their description."""
    world = tasks.Languages(seed=seed)
    out = {}
    for name, width in (("large", 64), ("small", 16)):
        if shuffled and name == "small":
            continue
        model = translator(seed, size.steps, width)
        sets = world.unseen(seed, size.tasks)
        found = [asked(model, items, tasks.shuffled(items, seed) if shuffled else None, seed=seed) for items in sets]
        k = {s: float(np.mean([f.metrics[f"accuracy_{s}_shot"].after for f in found])) for s in SHOTS}
        arm = {f"k{s}": value for s, value in k.items()}
        arm |= {"gain": k[16] - k[0], "above_bayes": k[1] - world.bayes(1), "k0_less_chance": k[0] - world.bayes(0)}
        if not shuffled:
            arm |= {"described": named(model, seed), "undescribed": named(model, seed, described=False)}
        out[name] = arm
    return out


def named(model: Model, seed: int, described: bool = True) -> float:
    """Accuracy on the named tasks without demonstrations, with or without their description."""
    sets = tasks.Languages(seed=seed).named_items(seed).items()
    found = [asked(model, items, shots=(0,), description=text if described else "") for text, items in sets]
    return float(np.mean([f.metrics["accuracy"].after for f in found]))


def asked(model: Model, items: list[Demo], train: list[Demo] | None = None, **options: Any) -> Result:
    """The method on one task; demonstrations are the other items unless they are given."""
    return prompting.gpt3(model, items, train, **({"shots": SHOTS, "separator": "\n"} | options))


@functools.cache
def translator(seed: int, steps: int, width: int) -> Model:
    """A Llama of one layer that read episodes. Kept: sabotages of the evaluation need no other model."""
    texts = tasks.Languages(seed=seed).corpus(seed, min(2_000, 32 * steps), shots=17)
    fit = Fit(lr=1e-2, steps=steps, rows=32, schedule="cosine", warmup_steps=20, seed=seed)
    return taught(texts, width, max(1, width // 16), 700, 128, fit)


def taught(texts: Sequence[Text], width: int, heads: int, vocabulary: int, context: int, fit: Fit) -> Model:
    """A Llama of one layer trained on documents, each a row, by plain next-token loss."""
    tokenizer = build.train_tokenizer([t.text for t in texts], vocabulary)
    begin = [(str(tokenizer.bos_token), int(tokenizer.bos_token_id))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    model = build.build("llama", tokenizer, d=width, layers=1, heads=heads, context=context, tied=False, seed=fit.seed)
    ids = [tuple(tokenizer(t.text)["input_ids"]) for t in texts]
    return learnt(model, [TokenizedExample(i[:1], i[1:]) for i in ids], fit)


def learnt(model: Model, rows: Sequence[TokenizedExample], fit: Fit) -> Model:
    """A copy of a model taught rows."""
    how = fit.replace(betas=(0.9, 0.95), weight_decay=0.1, micro_tokens=1 << 16)
    streams = {"text": language.single(rows)}
    return language.train(
        model, streams, lambda student, micro: {"nll": language.cross_entropy(student, micro)}, how, quiet=True
    ).model


# --- B: scoring rules -----------------------------------------------------------------------------


def scoring(seed: int, size: Size) -> dict[str, dict[str, float]]:
    """Accuracy of two rules where one choice is frequent, and where all are alike."""
    out = {}
    for name, base in (("skewed", (0.7, 0.1, 0.1, 0.1)), ("even", (0.25, 0.25, 0.25, 0.25))):
        world = tasks.Frequencies(base=base, seed=seed)
        model = colourist(seed, size.facts, base)
        result = prompting.gpt3(model, world.items(), shots=(0,), answer_context=tasks.NEUTRAL)
        out[name] = {rule: of["estimate"] for rule, of in result.findings["rules"].items()}
    return out


@functools.cache
def colourist(seed: int, steps: int, base: tuple[float, ...]) -> Model:
    """A model that read lines of keys and colours."""
    texts = tasks.Frequencies(base=base, seed=seed).corpus(seed, min(4_000, 64 * steps))
    return taught(texts, 32, 2, 420, 32, Fit(lr=1e-2, steps=steps, rows=64, schedule="cosine", seed=seed))


# --- C: contamination -----------------------------------------------------------------------------


def contamination(seed: int, size: Size) -> dict[str, dict[str, float]]:
    """What the audit finds, and how much better planted items are answered before and after their removal."""
    items, corpus, planted = tasks.quiz(seed)
    cleaned = prompting.gpt3_clean(corpus, items, window=40, shortest=40).records or []
    texts: dict[str, list[Text]] = {"planted": corpus, "cleaned": [t for t in cleaned if isinstance(t, Text)]}
    out: dict[str, dict[str, float]] = {}
    for name, read in texts.items():
        result = prompting.gpt3(reader(seed, size.facts, tuple(t.text for t in read)), items, corpus=corpus, shots=(0,))
        said = [bool(r.extra["clean"]) for r in result.records or []]
        right = np.array([float(r.extra["right"]) for r in result.records or []])
        dirty = np.array(planted)
        out[name] = {"gap": float(right[dirty].mean() - right[~dirty].mean()), "clean": float(right[~dirty].mean())}
        out[name]["errors"] = float(sum(a == b for a, b in zip(said, planted, strict=True)))
    left = prompting.gpt3(reader(seed, size.facts, tuple(t.text for t in texts["cleaned"])), items,
                          corpus=texts["cleaned"], shots=(0,))  # fmt: skip
    out["cleaned"]["left"] = float(left.findings["contamination"]["dirty"])
    return out


@functools.cache
def reader(seed: int, steps: int, texts: tuple[str, ...]) -> Model:
    """A model that learnt documents by heart."""
    records = [Text(text=t) for t in texts]
    return taught(records, 64, 4, 1_000, 96, Fit(lr=1e-2, steps=steps, rows=10, schedule="cosine", seed=seed))


# --- D: a band ------------------------------------------------------------------------------------


def bands(seed: int, size: Size) -> dict[str, dict[str, float]]:
    """Validation loss where a word depends on a name before it: dense, a band that spans both, one that does not."""
    tokenizer = build.train_tokenizer(["a"], 259)
    start = build.build("llama", tokenizer, d=32, layers=2, heads=2, context=64, tied=False, seed=seed)
    train, held = (notes(seed, tag, rows) for tag, rows in ((1, 1024), (2, 64)))
    models = {
        "dense": start,
        "wide": mixers.banded(start, FAR + 2, "all"),
        "narrow": mixers.banded(start, FAR // 2 + 1, "all"),
        "alternating": mixers.banded(start, FAR // 2 + 1),
    }
    out = {}
    for name, model in models.items():
        fit = Fit(lr=1e-2, steps=size.band, rows=16, schedule="cosine", warmup_steps=10, seed=seed)
        total, count = forward.row_logp(learnt(model, train, fit), held)
        out[name] = {"loss": float(-total.sum() / count.sum())}
    ids = torch.tensor([held[0].completion])
    with torch.no_grad():
        apart = mixers.banded(start, len(ids[0]), "all").module(ids).logits - start.module(ids).logits
    out["wide"]["error_at_full_width"] = float(apart.abs().max())
    return out


def notes(seed: int, tag: int, rows: int) -> list[TokenizedExample]:
    """Rows of blocks `name, four fixed tokens, noun, word`, where the word depends on the noun and the row's name.

    From the noun, the name is five positions back; nothing nearer tells the word.
    """
    rng = np.random.default_rng([seed, tag, 51])
    out = []
    for _ in range(rows):
        name = int(rng.integers(KINDS))
        nouns = rng.integers(NOUNS, size=BLOCKS).tolist()
        ids = [i for n in nouns for i in (100 + name, 110, 111, 112, 113, 120 + n, 140 + n * KINDS + name)]
        out.append(TokenizedExample(tuple(ids[:1]), tuple(ids[1:])))
    return out


# --- sabotages ------------------------------------------------------------------------------------


class Leaky(demonstrations.Sampler):
    """Sabotage: the query stands first among its own demonstrations."""

    def __call__(self, item: Demo, index: int, draw: int = 0) -> list[int]:
        """Its own position, then what would have been drawn."""
        return (self.where.get(demonstrations.key(item), [])[:1] + super().__call__(item, index, draw))[: self.most]


def unnormalised(
    rule: rank.Rule, total: float, tokens: float = 1, characters: float = 1, unconditional: float = 0.0
) -> float:
    """Sabotage: no rule divides or subtracts anything."""
    return total


def two_words(items: Sequence[str], low: int = 8, high: int = 13) -> int:
    """Sabotage: two words in a row count as an overlap."""
    return 2


def causal(queries: int, keys: int, width: int, device: Any = None) -> torch.Tensor:
    """Sabotage: the band sees everything before it."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


CLAIM = runner.Claim(
    method="gpt3",
    text=(
        "A language model infers a task it never saw from demonstrations in its prompt: sixteen beat one, one beats "
        "none, a description helps without any, and the gain is larger for the larger model. Scores less the "
        "choice's own likelihood undo surface frequency; the audit finds what stands in the text, and removal takes "
        "its advantage away; a band as wide as what must be seen costs nothing."
    ),
    run=run,
    gates=(verdict.gate("the large model knows the words of named tasks", "reader.named", at_least=0.8),),
    tests=(
        verdict.Test(
            name="one demonstration beats none", kind="difference", a="large.k1", b="large.k0", margin=0.03,
            unit="accuracy",
        ),
        verdict.Test(
            name="sixteen demonstrations beat one", kind="difference", a="large.k16", b="large.k1", margin=0.1,
            unit="accuracy",
        ),
        verdict.Test(
            name="a description helps without demonstrations", kind="difference", a="large.described",
            b="large.undescribed", margin=0.1, unit="accuracy",
        ),
        verdict.Test(
            name="the larger model gains more", kind="difference", a="large.gain", b="small.gain", margin=0.1,
            unit="accuracy",
        ),
        verdict.Test(
            name="one demonstration is no better than exact Bayes", kind="bound", a="large.above_bayes", null=0.1,
            direction="less", unit="accuracy",
        ),
        verdict.Test(
            name="without demonstrations it is at chance", kind="equivalence", a="large.k0_less_chance", margin=0.15,
            unit="accuracy", gates="none",
        ),
        verdict.Test(
            name="where choices are unequally frequent, unconditional beats token", kind="difference",
            a="skewed.unconditional", b="skewed.token", margin=0.1, unit="accuracy",
        ),
        verdict.Test(
            name="where they are alike, the rules agree", kind="equivalence", a="even.unconditional", b="even.token",
            margin=0.1, unit="accuracy",
        ),
        verdict.Test(
            name="the audit finds what was planted and nothing else", kind="exact", a="planted.errors", unit="items",
        ),
        verdict.Test(
            name="planted items are answered better", kind="bound", a="planted.gap", margin=0.2, unit="accuracy",
        ),
        verdict.Test(name="nothing planted is left after removal", kind="exact", a="cleaned.left", unit="items"),
        verdict.Test(
            name="removal takes the advantage away", kind="equivalence", a="cleaned.gap", margin=0.2, unit="accuracy",
        ),
        verdict.Test(
            name="a band that spans what is needed costs nothing", kind="equivalence", a="wide.loss", b="dense.loss",
            transform="log", margin=math.log(1.1), unit="log ratio",
        ),
        verdict.Test(
            name="a band that does not is worse", kind="difference", a="narrow.loss", b="dense.loss", transform="log",
            margin=math.log(1.1), unit="log ratio",
        ),
        verdict.Test(
            name="alternating with dense layers costs nothing", kind="equivalence", a="alternating.loss",
            b="dense.loss", transform="log", margin=math.log(1.1), unit="log ratio",
        ),
        verdict.Test(
            name="a band of full width is dense", kind="exact", a="wide.error_at_full_width", margin=1e-5,
            unit="logits",
        ),
    ),
    sabotages=(
        runner.Sabotage(
            name="labels of the demonstrations shuffled", breaks="sixteen demonstrations beat one",
            options={"parts": ("A",), "shuffled": True},
        ),
        runner.Sabotage(
            name="the query stands among its demonstrations", breaks="one demonstration is no better than exact Bayes",
            patch={"didact.data.demonstrations:Sampler": Leaky}, options={"parts": ("A",)},
        ),
        runner.Sabotage(
            name="the unconditional rule subtracts nothing",
            breaks="where choices are unequally frequent, unconditional beats token",
            patch={"didact.infer.rank:by_rule": unnormalised}, options={"parts": ("B",)},
        ),
        runner.Sabotage(
            name="two words in a row are an overlap", breaks="the audit finds what was planted and nothing else",
            patch={"didact.data.contamination:gram_length": two_words}, options={"parts": ("C",)},
        ),
        runner.Sabotage(
            name="the band is ignored", breaks="a band that does not is worse",
            patch={"didact.models.mixers:band": causal}, options={"parts": ("D",)},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
