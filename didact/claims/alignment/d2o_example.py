"""The example `didact run d2o` uses: a small model two fifths of whose answers are spoiled, and 400 spoiled answers."""

from __future__ import annotations

from didact.claims.alignment import spin_example
from didact.claims.problem import Problem
from didact.models import build
from didact.models.model import Model
from didact.types import Demo, Judged

ANSWER, world = spin_example.ANSWER, spin_example.world
SPOILED = 0.4  # share of the demonstrations that the model is tuned on


def negatives(seed: int, n: int = 400, part: int = 3) -> list[Judged]:
    """Spoiled answers to prompts drawn for one part."""
    demos = world(seed).demos(part, n, spoiled=1.0)
    return [Judged(prompt=d.prompt, completion=d.completion, label=False) for d in demos]


def problem(seed: int) -> Problem:
    """A model of 40k weights; scored on 100 spoiled and 64 good answers that are held out.

    At this size the paper's learning rate and its beta of 0.1 would take thousands of steps (seed 1000).
    """
    positives = [Judged(prompt=d.prompt, completion=d.completion, label=True) for d in world(seed).demos(4, 64)]
    return Problem(
        model=tuned(world(seed).demos(1, 2000, spoiled=SPOILED), seed),
        data={"judged": negatives(seed)},
        options={"k": 4, "beta": 0.3, "alpha": 0.3, "max_new_tokens": ANSWER, "offline_steps": 40, "every": 20},
        fit={"lr": 1e-4, "steps": 80, "rows": 16, "lora": 0},
        protocol={"judged": [*negatives(seed, 100, 5), *positives]},
    )


def tuned(demos: list[Demo], seed: int, arch: build.Arch = "gpt2", steps: int = 400) -> Model:
    """Supervised fine-tuning on demonstrations, good and spoiled, from random weights."""
    return spin_example.tuned(demos, seed, arch, spin_example.TEACH.replace(steps=steps))
