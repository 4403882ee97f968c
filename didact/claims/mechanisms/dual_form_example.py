"""The embedded examples of dual-form: a small model that learns in context, and source of Python's standard library."""

from __future__ import annotations

import argparse
import difflib
import inspect
import typing
from typing import Any

from didact.claims.mechanisms import translators
from didact.claims.problem import Problem
from didact.types import Text

OPTIONS: dict[str, Any] = {"shots": 8, "lrs": (0.03, 0.1, 0.3), "queries": 6}
SHAPE: dict[str, Any] = {"layers": 2, "d": 64, "heads": 4, "context": 64, "vocabulary": 259}
READ, WRITTEN = 200, 250  # training steps of the small model, and of the character-level model


def problem(seed: int) -> Problem:
    """The small model, and one held-out task."""
    items = [r for r in translators.problems(seed) if r.task == "task 0"]
    return Problem(
        model=translators.translator(seed, READ), data={"train": items[:12], "test": items[12:]},
        options={**OPTIONS, "draws": 10},
    )  # fmt: skip


def problem_momentum(seed: int) -> Problem:
    """Source of Python's standard library, and the shape of a character-level model."""
    return Problem(data={"corpus": code()}, options=SHAPE, fit=training(WRITTEN))


def code() -> list[Text]:
    """Return three modules of Python's standard library in pieces of 3,000 characters."""
    sources = [inspect.getsource(m) for m in (argparse, typing, difflib)]
    return [Text(text=source[start : start + 3_000]) for source in sources for start in range(0, len(source), 3_000)]


def training(steps: int) -> dict[str, Any]:
    """Return the training options of both momentum arms."""
    return {"lr": 3e-3, "steps": steps, "rows": 8, "betas": (0.9, 0.98), "schedule": "cosine", "warmup_steps": 10}
