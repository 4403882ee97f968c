"""The example of `didact run mcts-dpo`: a small model that solves chains of arithmetic, with errors."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.models import build
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import arithmetic

MODULUS, OPERATIONS = 5, 2
SOLUTION = 16  # tokens: the 15 of a solution and the end token
TEACH = Fit(lr=3e-3, steps=450, rows=32, schedule="wsd", warmup_steps=20, betas=(0.9, 0.98))
SEARCH: dict[str, Any] = {
    "search.simulations": 16, "search.root_actions": 3, "search.actions": 3, "search.depth": OPERATIONS + 1,
    "search.step": [";"], "search.last": "", "search.step_tokens": 7, "search.include_gt": False,
    "critic.by": "none", "critic.hint": False,
}  # fmt: skip


def chains(seed: int, part: int, count: int) -> list[Demo]:
    """Problems of one part (1: training, 2: held out), with solutions and answers."""
    return arithmetic.chains(count, 100 * seed + part, OPERATIONS, MODULUS)


def flawed(seed: int) -> list[Demo]:
    """Solutions by someone who gets three in ten operations wrong, more often than not; the seed decides which."""
    return arithmetic.chains(2000, 100 * seed, OPERATIONS, MODULUS, arithmetic.mistakes(0.3, seed, MODULUS))


def problem(seed: int, arch: build.Arch = "gpt2") -> Problem:
    """A model of 120k weights tuned on 2,000 solutions, 256 problems with their answers, and 256 held-out ones.

    The solutions' author gets three in ten operations wrong, more often than not.

    At this size the model cannot judge itself, and the answer alone guides the search; the paper's learning
    rate changes nothing, and its beta of .1 needs margins that spoil other steps (checked on seeds 1000 and 1001).
    """
    return Problem(
        model=tuned(seed, arch),
        data={"demos": chains(seed, 1, 256)},
        options={"rounds": 2, "batch": 128, "beta": 0.5, **SEARCH},
        fit={"lr": 1e-4, "epochs": 4, "rows": 16, "schedule": "constant"},
        protocol={"demos": chains(seed, 2, 256)},
    )


def tuned(seed: int, arch: build.Arch = "gpt2", teach: Fit = TEACH) -> Model:
    """The start model: fine-tuned on solutions from random weights."""
    base = lab.blank(arch, d=64, layers=2, heads=4, context=40, seed=seed)
    return lab.tuned(base, flawed(seed), teach.replace(seed=seed))
