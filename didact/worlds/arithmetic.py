"""Arithmetic in words: the ten tasks on which few-shot ability was measured, each a stream of random problems.

Source: Brown et al. 2020, arXiv:2005.14165, section 3.9.1.
"""

from __future__ import annotations

import numpy as np

from didact.types import Demo, UserError

SIGNS = {"plus": "+", "minus": "-", "times": "*"}
TASKS: dict[str, tuple[int, str]] = {
    "2D+": (2, "plus"), "2D-": (2, "minus"), "3D+": (3, "plus"), "3D-": (3, "minus"), "4D+": (4, "plus"),
    "4D-": (4, "minus"), "5D+": (5, "plus"), "5D-": (5, "minus"), "2Dx": (2, "times"), "1DC": (1, ""),
}  # fmt: skip
"""Digits and operation of each; 1DC is a composite of three one-digit numbers."""


def problems(task: str, count: int = 2000, seed: int = 0) -> list[Demo]:
    """Random problems of one task, all numbers uniform in [0, 10^digits).

    `Q: What is 98 plus 45?\\n\\nA:` is answered `143`. Differences may be negative. A composite puts parentheses
    around its first or its last two numbers: `What is (9 + 8) * 2?`.

    Raises:
        UserError: no such task.
    """
    if task not in TASKS:
        raise UserError(f"arithmetic task '{task}': choose from {', '.join(TASKS)}")
    digits, word = TASKS[task]
    rng = np.random.default_rng([seed, list(TASKS).index(task), 91])
    made = []
    for _ in range(count):
        if word:
            a, b = (int(n) for n in rng.integers(10**digits, size=2))
            text, operands = f"{a} {word} {b}", {"a": a, "b": b, "operation": word}
            value = {"plus": a + b, "minus": a - b, "times": a * b}[word]
        else:
            text, value = _composite(rng)
            operands = {}
        made.append(Demo(prompt=f"Q: What is {text}?\n\nA:", completion=str(value), task=task, extra=operands))
    return made


def phrases(record: Demo) -> list[str]:
    """How a problem of two numbers would stand in text that gives its answer away: `98 + 45 =`, `98 plus 45`."""
    of = record.extra
    if "a" not in of:
        return []
    return [f"{of['a']} {SIGNS[of['operation']]} {of['b']} =", f"{of['a']} {of['operation']} {of['b']}"]


def _composite(rng: np.random.Generator) -> tuple[str, int]:
    a, b, c = (int(n) for n in rng.integers(10, size=3))
    first, second = (str(s) for s in rng.choice(list(SIGNS.values()), 2))
    if rng.random() < 0.5:
        return f"({a} {first} {b}) {second} {c}", _apply(second, _apply(first, a, b), c)
    return f"{a} {first} ({b} {second} {c})", _apply(first, a, _apply(second, b, c))


def _apply(sign: str, a: int, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b
