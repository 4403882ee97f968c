"""The example of `didact run reward-augmented`: a small model that answers at random, and scored pairs of answers."""

from __future__ import annotations

import numpy as np

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data import splits
from didact.data.goals import Wording
from didact.models import build
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds.scored import Scored

WORDING = Wording(template="Overall score: {goal}", joint="\n")


def world(seed: int) -> Scored:
    """Four prompts; 256 answers, of four letters from an alphabet of four."""
    return Scored(prompts=4, letters=4, own=0.0, seed=seed)


def problem(seed: int) -> Problem:
    """A model of 35k weights and 2,000 pairs; those of one prompt out of four are held out.

    The paper's beta and learning rate would change nothing in so few steps.
    """
    unseen, pairs = splits.by_prompt(world(seed).pairs(2, 2000, near=0.2), 0.25, seed)
    return Problem(
        model=tuned(seed),
        data={"preferences": pairs},
        options={"wording.template": WORDING.template, "wording.joint": WORDING.joint, "step": 1.0, "beta": 1.0},
        fit={"lr": 2e-3, "steps": 150, "rows": 32, "warmup_steps": 10},
        protocol={"preferences": unseen},
    )


def tuned(seed: int, arch: build.Arch = "gpt2", steps: int = 150) -> Model:
    """Fine-tuned from random weights on random answers, half of them under a goal unrelated to the answer.

    So the text of a goal is familiar to it, as to any large model, and yet has no effect.
    """
    demos = world(seed).demos(1, 4000)
    goals = np.random.default_rng([seed, 54]).choice(range(11), size=len(demos), p=[0.5, *[0.05] * 10])
    prompts = [WORDING.prompt(d.prompt, (float(g),)) if g else d.prompt for d, g in zip(demos, goals, strict=True)]
    goal_demos = [Demo(prompt=p, completion=d.completion) for p, d in zip(prompts, demos, strict=True)]
    texts = [WORDING.text((float(g),)) for g in range(1, 11)]
    base = lab.blank(arch, texts, 280, d=32, layers=2, heads=4, context=32, seed=seed, initializer_range=0.1)
    fit = Fit(lr=3e-3, steps=steps, rows=32, schedule="cosine", warmup_steps=10, betas=(0.9, 0.95))
    return lab.tuned(base, goal_demos, fit)
