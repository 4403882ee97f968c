"""A model trained to write programs for a walker from the states before and after, without those between."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import robots

WORLD = robots.Grids()
STEPS, CORPUS = 500, 20_000
OPTIONS: dict[str, Any] = {"language": "grid", "probe.epochs": 15, "max_new_tokens": 12, "source": "given"}


def problem(seed: int) -> Problem:
    """A small model, and specifications, a fifth of which were not in its training."""
    return Problem(
        model=writer(seed, STEPS),
        data={"programs": WORLD.demos(10_000 + seed, 2_000)},
        options=OPTIONS | {"by_layer": True},
    )


def writer(seed: int, steps: int, ends: bool = True) -> Model:
    """Train a model (two layers, width 64) on specifications and their programs, or load it from the cache.

    Without `ends` the final states are those of other programs: the same form without the meaning.
    """
    demos = WORLD.demos(seed, CORPUS, asked=False)
    if not ends:
        demos = [mixed(demo, other) for demo, other in zip(demos, [*demos[1:], demos[0]], strict=True)]
    fit = Fit(lr=6e-3, steps=steps, rows=128, schedule="linear", warmup_steps=30, betas=(0.9, 0.98), seed=seed)
    texts = [f"{d.prompt} {d.completion}" for d in demos[:2_000]]
    blank = lab.blank("llama", texts, 330, d=64, layers=2, heads=4, context=64, seed=seed)
    return lab.tuned(blank, demos, fit) if steps else blank


def mixed(demo: Demo, other: Demo) -> Demo:
    """Return a specification with another's final states."""
    pairs = zip(demo.prompt.split(" ; "), other.prompt.split(" ; "), strict=True)
    prompt = " ; ".join(f"{a.split(' to ')[0]} to {b.split(' to ')[1]}" for a, b in pairs)
    return Demo(prompt=prompt, completion=demo.completion, extra=demo.extra)
