"""The example of `didact run verbalized-ml`: a model trained to apply texts that name functions, and to find them."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.models import build
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import described

RECORDS, STEPS = 3000, 800
TEACH = Fit(lr=5e-3, rows=32, schedule="wsd", warmup_steps=20, betas=(0.9, 0.98))
OPTIONS: dict[str, Any] = {
    "task": described.START, "learning.prefix": False, "learning.batch": 0, "learning.epochs": 2,
    "learning.memory": 0, "learning.decimals": 0, "learning.words": "terse", "asking.temperature": 0.0,
    "asking.max_new_tokens": 12,
}  # fmt: skip
TOKENS = (" ", "User: ", "\nAssistant:", "at", "gave", "not", "b")


def problem(seed: int) -> Problem:
    """A Llama of 0.1M weights trained on both tasks, and the examples of y = x + 2 modulo 5."""
    rows = described.examples(2)
    return Problem(model=taught(seed, STEPS), data={"train": rows, "questions": rows}, options=OPTIONS)


def taught(seed: int, steps: int) -> Model:
    """Random weights fine-tuned on both tasks."""
    tokenizer = build.train_tokenizer([])
    tokenizer.add_tokens(list(TOKENS))
    base = build.build("llama", tokenizer, d=64, layers=2, heads=4, context=64, seed=seed, initializer_range=0.1)
    return lab.tuned(base, described.mixture(seed, RECORDS), TEACH.replace(steps=steps, seed=seed))
