"""The example of `didact run spin`: a small model that has partly learnt a grammar from demonstrations."""

from __future__ import annotations

from didact.claims import lab
from didact.claims.problem import Problem
from didact.models import build
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds.grammar import Grammar

ANSWER = 16  # tokens: more than the longest answer has
TEACH = Fit(lr=3e-3, steps=300, rows=32, schedule="cosine", warmup_steps=10, betas=(0.9, 0.95))


def world(seed: int) -> Grammar:
    """Two classes of ten letters, with three possible successors each; a spoiled answer has one mark."""
    return Grammar(classes=2, letters=10, follow=3, seed=seed)


def problem(seed: int, arch: build.Arch = "gpt2") -> Problem:
    """A model of 40k weights tuned on 1,000 demonstrations, and 128 held-out ones.

    At this size the paper's learning rate changes nothing, and its lam of 0.1 and 5 is replaced by 1, with which the
    model reaches the demonstrations' distribution (tuned on seed 1000).
    """
    demos = world(seed).demos(1, 1000)
    return Problem(
        model=tuned(demos, seed, arch),
        data={"demos": demos},
        options={"rounds": 2, "lam": [1.0], "lr_factors": [1.0], "max_new_tokens": ANSWER},
        fit={"lr": 1e-3, "steps": 60, "rows": 32, "warmup_steps": 0},
        protocol={"demos": world(seed).demos(2, 128)},
    )


def tuned(demos: list[Demo], seed: int, arch: build.Arch = "gpt2", teach: Fit = TEACH) -> Model:
    """The start model of SPIN and D2O: fine-tuned on the demonstrations from random weights."""
    return lab.tuned(lab.blank(arch, d=32, layers=2, heads=2, context=48, seed=seed), demos, teach)
