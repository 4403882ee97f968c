"""The example `didact run hindsight` uses: a model that learnt good and bad answers alike, and pairs of them."""

from __future__ import annotations

import inspect

from didact.claims.problem import Problem
from didact.learn import episodes, fit
from didact.methods.baselines.sft import sft
from didact.models import build, load
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds.sorting import Sorting

GOOD, BAD = "good:", "bad:"  # as few bytes as words can have here
TEACH = Fit(lr=5e-3, steps=300, rows=24, warmup_steps=10, betas=(0.9, 0.95))


@episodes.one_thread()
def problem(seed: int, arch: build.Arch = "llama") -> Problem:
    """A model of 60k weights tuned on 4,000 answers, half of them the worse ones; 200 pairs that no training sees.

    At this size the paper's learning rate changes nothing (found on seed 1000).
    """
    return Problem(
        model=start(seed, arch=arch),
        data={"preferences": Sorting(seed=seed).pairs(1, 2000)},
        options={"good": [GOOD], "bad": [BAD]},
        fit={"lr": 3e-3, "steps": 300, "rows": 16, "warmup_steps": 10},
        protocol={"preferences": Sorting(seed=seed).pairs(2, 200)},
    )


def start(seed: int, teach: Fit = TEACH, arch: build.Arch = "llama") -> Model:
    """Where every arm starts: taught chosen and rejected answers alike, without a word about which is which."""
    pairs = Sorting(seed=seed).pairs(1, 2000)
    mixed = [Demo(prompt=p.prompt, completion=side) for p in pairs for side in (p.chosen, p.rejected)]

    def make() -> Model:
        tokenizer = build.train_tokenizer([], 259)
        # Weights large enough for so narrow a model: at 0.02 it long sees nothing but how frequent letters are.
        base = build.build(arch, tokenizer, d=48, layers=2, heads=2, context=64, seed=seed, initializer_range=0.1)
        model = sft(base, mixed, fit=teach.replace(seed=seed)).models["model"]
        assert isinstance(model, Model)
        return model

    return load.kept("example", make, arch, str(seed), repr(mixed[:9]), repr(teach), inspect.getsource(fit))
