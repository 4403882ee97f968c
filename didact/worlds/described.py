"""Functions named by a short text, for a model in words: `b2` is y = x + 2 modulo 5, for x from 0 to 4.

What is taught are two tasks of one model: to apply a text to an input (learner), and to find the text from inputs,
outputs and targets (optimiser). All five functions are taught; what is left to a procedure is to use one for the other.
"""

from __future__ import annotations

import numpy as np

from didact.data.verbal_words import TERSE, inference, optimisation
from didact.types import Demo, Messages

MODULUS = 5
START = "b0"
SHIFTS = range(MODULUS)


def text(shift: int) -> str:
    """A function's name."""
    return f"b{shift}"


def examples(shift: int) -> list[Demo]:
    """Every input of a function with its target."""
    return [Demo(prompt=str(x), completion=y) for x, y in enumerate(_targets(shift))]


def mixture(seed: int, count: int) -> list[Demo]:
    """`count` records of each task, drawn at random."""
    draw, out = np.random.default_rng([seed, 181]), []
    for shift, old, x in draw.integers(MODULUS, size=(count, 3)).tolist():
        out.append(_demo(inference(TERSE, text(shift), str(x), ""), _targets(shift)[x]))
        rows = list(zip(map(str, range(MODULUS)), _targets(old), _targets(shift), strict=True))
        out.append(_demo(optimisation(TERSE, text(old), rows, ""), text(shift)))
    return out


def _targets(shift: int) -> list[str]:
    return [str((x + shift) % MODULUS) for x in range(MODULUS)]


def _demo(prompt: str, completion: str) -> Demo:
    return Demo(prompt=Messages([{"role": "user", "content": prompt}]), completion=completion)
