"""The example `didact run tool-rft` uses: a small model that calls tools, and errs in what it gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.models import build
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import tools

HARD = 0.3  # share of requests with two calls
ANSWER = 32  # tokens: more than two calls have
SLIPS = {"a dozen": 10, "a score of": 12, "three score": 36}
TEACH = Fit(lr=4e-3, steps=300, rows=32, schedule="wsd", warmup_steps=20, betas=(0.9, 0.98))
SEARCH: dict[str, Any] = {
    "bins": 0, "search.max_new_tokens": ANSWER, "search.depth": 6, "search.group": 1, "search.simulations": 4,
}  # fmt: skip


def problem(seed: int, arch: build.Arch = "gpt2") -> Problem:
    """A model of 150k weights tuned on 1,000 requests, 300 others, and 128 that no training sees.

    Whoever made the calls it was tuned on gets three amounts in words wrong, more often than not; the 300 are right.
    The start has had its warm-up; at this size the paper's learning rate changes nothing (found on seed 1000).
    """
    return Problem(
        model=tuned(seed, tools.requests(1000, 10 * seed + 2, HARD, SLIPS), arch),
        data={"demos": tools.requests(300, 10 * seed, HARD)},
        options={"rounds": 2, **SEARCH},
        fit={"lr": 1e-4, "steps": 40, "rows": 16, "lora": 0, "schedule": "linear"},
        protocol={"demos": tools.requests(128, 10 * seed + 1, HARD)},
    )


def tuned(seed: int, demos: Sequence[Demo], arch: build.Arch = "gpt2", teach: Fit = TEACH) -> Model:
    """Where the search starts: supervised fine-tuning on requests and their calls, from random weights."""
    texts = [f"{d.prompt}{d.completion}" for d in tools.requests(500, 7)]
    return lab.tuned(
        lab.blank(arch, texts, 420, d=64, layers=2, heads=4, context=96, seed=seed), demos, teach.replace(seed=seed)
    )
