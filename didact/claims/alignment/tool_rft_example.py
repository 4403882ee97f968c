"""The example `didact run tool-rft` uses: a small model that calls tools, and errs in what it gives them."""

from __future__ import annotations

import inspect
from typing import Any

from didact.claims.problem import Problem
from didact.learn import episodes, fit
from didact.methods.baselines.sft import sft
from didact.models import build, load
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import tools

DEMOS = 1500
HARD = 0.08  # share of requests with two calls
WIDTH = 64
ANSWER = 32  # tokens: more than two calls have
TEACH = Fit(lr=4e-3, steps=220, rows=32, schedule="constant", warmup_steps=20, betas=(0.9, 0.98))
SEARCH: dict[str, Any] = {
    "bins": 0,
    "max_new_tokens": ANSWER,
    "depth": 6,
    "group": 1,
    "temperature": 1.2,
    "simulations": 4,
}


@episodes.one_thread()
def problem(seed: int, arch: build.Arch = "gpt2") -> Problem:
    """A model of 150k weights tuned on 1,500 requests, those again, and 128 that no training sees.

    The start has had its warm-up; at this size the paper's learning rate changes nothing (found on seed 1000).
    """
    return Problem(
        model=tuned(seed, arch),
        data={"demos": tools.requests(DEMOS, 10 * seed, HARD)[:600]},
        options={"rounds": 1, "ratio": 0.3, **SEARCH},
        fit={"lr": 1e-4, "epochs": 1, "rows": 16, "lora": 0, "schedule": "linear"},
        protocol={"demos": tools.requests(128, 10 * seed + 1, 0.5)},
    )


def tuned(seed: int, arch: build.Arch = "gpt2", teach: Fit = TEACH) -> Model:
    """Where the search starts: supervised fine-tuning on requests and their calls, from random weights."""
    demos = tools.requests(DEMOS, 10 * seed, HARD)

    def make() -> Model:
        tokenizer = build.train_tokenizer([f"{d.prompt}{d.completion}" for d in tools.requests(500, 7)], 420)
        base = build.build(arch, tokenizer, d=WIDTH, layers=2, heads=4, context=96, seed=seed)
        model = sft(base, demos, fit=teach.replace(seed=seed)).models["model"]
        assert isinstance(model, Model)
        return model

    return load.kept("example", make, arch, str(seed), repr(demos), repr(teach), inspect.getsource(fit))
