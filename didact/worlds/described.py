"""Functions described by a short text, for verbalized machine learning: `b2` is y = x + 2 modulo 5, for x from 0 to 4.

One model is taught two tasks: to apply a text to an input (learner), and to infer the text from inputs, outputs and
targets (optimiser). All five functions are taught; the procedure only has to combine the two tasks.
"""

from __future__ import annotations

import numpy as np

from didact.data.verbal_words import TERSE, inference, optimisation
from didact.types import Demo, Messages

MODULUS = 5
START = "b0"
SHIFTS = range(MODULUS)


def text(shift: int) -> str:
    """The text that describes a function."""
    return f"b{shift}"


def examples(shift: int) -> list[Demo]:
    """Every input of a function with its target."""
    return [Demo(prompt=str(x), completion=y) for x, y in enumerate(_targets(shift))]


def mixture(seed: int, count: int) -> list[Demo]:
    """`count` random records of each task."""
    draw, demos = np.random.default_rng([seed, 181]), []
    for shift, previous, x in draw.integers(MODULUS, size=(count, 3)).tolist():
        demos.append(_demo(inference(TERSE, text(shift), str(x), ""), _targets(shift)[x]))
        rows = list(zip(map(str, range(MODULUS)), _targets(previous), _targets(shift), strict=True))
        demos.append(_demo(optimisation(TERSE, text(previous), rows, ""), text(shift)))
    return demos


def _targets(shift: int) -> list[str]:
    return [str((x + shift) % MODULUS) for x in range(MODULUS)]


def _demo(prompt: str, completion: str) -> Demo:
    return Demo(prompt=Messages([{"role": "user", "content": prompt}]), completion=completion)
