"""The example `didact run phf` uses: a small model that learnt text with bad lines, and the scored text."""

from __future__ import annotations

import inspect

from didact.claims.problem import Problem
from didact.learn import episodes, fit
from didact.methods.alignment.phf import phf
from didact.models import build, load
from didact.models.model import Model
from didact.types import Fit, Text
from didact.worlds.tiles import Tiles

BLOCK = 32  # a document has 32 letters and line ends
TEACH = Fit(lr=5e-3, steps=200, rows=16, warmup_steps=10, weight_decay=0.1, betas=(0.9, 0.95))


@episodes.one_thread()
def problem(seed: int, arch: build.Arch = "llama") -> Problem:
    """A model of 60k weights that learnt 3,000 documents as they are, to go on with their scores.

    At this size the paper's learning rate teaches nothing in a few hundred steps; 200 steps leave the two tokens, which
    begin alike, untold apart.
    """
    texts = Tiles(seed=seed).texts(1, 3000)
    return Problem(
        model=plain(texts, seed, arch),
        data={"texts": texts},
        options={
            "threshold": 0.0, "scorer": "didact.worlds.tiles:rewards", "split": "lines", "ban": "misaligned",
            "block": BLOCK,
        },
        fit={"lr": 5e-3, "steps": 400, "rows": 16, "warmup_steps": 10, "betas": (0.9, 0.95)},
        protocol={"texts": Tiles(seed=seed).texts(2, 200)},
    )  # fmt: skip


def untrained(seed: int, arch: build.Arch = "llama") -> Model:
    """Random weights, large enough for so narrow a model: at 0.02 it long sees nothing but how frequent letters are."""
    tokenizer = build.train_tokenizer([], 259)
    return build.build(arch, tokenizer, d=48, layers=2, heads=2, context=64, seed=seed, initializer_range=0.1)


def plain(texts: list[Text], seed: int, arch: build.Arch = "llama", teach: Fit = TEACH) -> Model:
    """Pre-trained on the text, scores unseen."""

    def make() -> Model:
        model = phf(untrained(seed, arch), texts, objective="mle", block=BLOCK, fit=teach).models["model"]
        assert isinstance(model, Model)
        return model

    return load.kept("example", make, arch, str(seed), repr(texts[:9]), repr(teach), inspect.getsource(fit))
