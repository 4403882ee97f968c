"""The example of `didact run npo`: a small model trained on invented authors, some to be forgotten."""

from __future__ import annotations

from didact.claims import lab
from didact.claims.problem import Problem
from didact.types import Fit
from didact.worlds import authors

TEACH = Fit(lr=2e-3, epochs=60, rows=16, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)


def problem(seed: int) -> Problem:
    """A Llama of about 0.5M weights trained on 14 authors, and the gold model trained without two of them.

    At this size the paper's learning rate of 1e-5 changes nothing, and answers of one or two tokens
    need a larger beta than the paper's sentences (chosen on seed 7).
    """
    world = authors.authors(seed, forget=2, retain=8, unseen=4, holdout=2)
    retained = world.retain + world.unseen
    texts = [f"{r.prompt} {r.completion}" for r in world.forget + retained + world.holdout]
    base = lab.blank("llama", texts, 700, d=128, layers=2, heads=4, context=64, seed=seed)
    full, gold = (lab.tuned(base, facts, TEACH) for facts in (world.forget + retained, retained))
    return Problem(
        model=full,
        data={"forget": world.forget, "retain": world.retain},
        options={"beta": 1.0},
        fit={"lr": 2e-4, "steps": 100, "rows": 20, "warmup_steps": 6},
        protocol={"retain": world.unseen, "holdout": world.holdout, "gold": gold},
    )
