"""The example of `didact run meta-prompting`: a model trained to conduct, to calculate and to write programs."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data import scaffold_words as words
from didact.models import build
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import conducted

CHAINS, STEPS = 600, 1500
TEACH = Fit(lr=5e-3, rows=32, schedule="wsd", warmup_steps=20, betas=(0.9, 0.98))
OPTIONS: dict[str, Any] = {
    "rules.words": "terse", "rules.rounds": 6, "rules.python": False, "asking.max_new_tokens": 24,
}  # fmt: skip
TOKENS = (
    " ", "User: ", "\nUser: ", "\nAssistant:", f"{conducted.CALCULATOR}:\n{words.QUOTES}\n",
    f"{words.PYTHON}:\n{words.QUOTES}\n", f"\n{words.QUOTES}", f"{words.FINAL}\n{words.QUOTES}\n",
    *conducted.program("{}").completion.split("{}"), words.printed("", ""), words.TERSE.with_python,
    words.TERSE.python, words.TERSE.steps.strip(), words.TERSE.standard.split()[-1], conducted.AGAIN,
)  # fmt: skip
"""Fixed phrases of the conversations, each one token, so that a small model's training steps go into the rest."""


def problem(seed: int) -> Problem:
    """A Llama of 0.1M weights trained on all sides of the conversations, and held-out chains as questions."""
    return Problem(
        model=taught(seed, STEPS), data={"questions": conducted.problems(32, 1000 + seed, 3)}, options=OPTIONS
    )


def taught(seed: int, steps: int) -> Model:
    """Random weights fine-tuned on chains of two or three operations in every form."""
    tokenizer = build.train_tokenizer([])
    tokenizer.add_tokens(list(TOKENS))
    base = build.build("llama", tokenizer, d=64, layers=2, heads=4, context=192, seed=seed, initializer_range=0.1)
    return lab.tuned(base, conducted.mixture(seed, CHAINS), TEACH.replace(steps=steps, seed=seed))
