"""Scripted learners and optimisers: they parse their prompts, and compute what a perfect model would answer.

They stand for no language model, and test the procedure around one: a wrong prompt leads to a wrong number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from didact.data.verbal_words import DESCRIPTIONS, OUTPUT
from didact.tools import formulas
from didact.types import Messages

Fitting = Callable[[np.ndarray, np.ndarray, np.ndarray, str], tuple[float, float]]
"""`fitting(x, outputs, targets, theta) -> (slope, intercept)`."""


class Scripted:
    """An `LM`: as a learner it computes `y = a x + b` from a text, as an optimiser `fitting` from a batch."""

    name, context, capabilities = "scripted", 10**6, frozenset({"generate"})

    def __init__(self, fitting: Fitting, slips: float = 0.0) -> None:
        self.fitting, self.slips, self.asked = fitting, slips, list[Messages]()

    def fingerprint(self) -> str:
        """The name: nothing was trained."""
        return self.name

    def generate(self, prompts: Sequence[Any], *args: Any, **how: Any) -> list[list[str]]:
        """One answer per prompt."""
        self.asked += prompts
        return [[self._answer(str(prompt.turns[-1]["content"]))] for prompt in prompts]

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Counts of words separated by white space."""
        return [len(text.split()) for text in texts]

    def _answer(self, prompt: str) -> str:
        if prompt.startswith("# Inference"):
            function = formulas.parse(section(prompt, "Pattern Descriptions"))
            value = function(float(section(prompt, "Input").split("\n")[0])) if function else 0.0
            return f"Explanations: by the formula. Output: is next.\n\n{OUTPUT} [{value + self.slips:.2f}]"
        x, outputs, targets = (numbers(section(prompt, name)) for name in PARTS)
        a, b = self.fitting(x, outputs, targets, section(prompt, "Current Pattern Descriptions"))
        return f"Reasoning: the errors are {np.round(targets - outputs, 2)}.\n\n{DESCRIPTIONS} {written(a, b)}"


PARTS = ("Inputs", "The model outputs", "The target outputs")


def section(prompt: str, title: str) -> str:
    """The text of a prompt's section with this title, up to the next section; empty if there is none."""
    match = re.search(rf"## {title}[^\n]*\n(.*?)(?=\n## |\n\nAnswer in|\nWhere the model|\Z)", prompt, re.DOTALL)
    return match[1].strip() if match else ""


def numbers(text: str) -> np.ndarray:
    """The numbers of a list."""
    return np.array([float(part) for part in text.strip("[]").split(",")])


def written(a: float, b: float) -> str:
    """A line as a pattern description, at full precision."""
    return f"y = {a!r} * x + {b!r}"


def line(theta: str) -> tuple[float, float]:
    """Slope and intercept of the last line in a text; 0 and 0 where there is none."""
    matches = re.findall(r"y = (\S+) \* x \+ (\S+)", theta)
    return (float(matches[-1][0]), float(matches[-1][1])) if matches else (0.0, 0.0)


def least_squares(x: np.ndarray, outputs: np.ndarray, targets: np.ndarray, theta: str) -> tuple[float, float]:
    """The least-squares line through a batch."""
    centred, spread = x - x.mean(), float(((x - x.mean()) ** 2).sum())
    a = float((centred * targets).sum()) / spread if spread else 0.0
    return a, float(targets.mean() - a * x.mean())


def gradient_step(
    x: np.ndarray, outputs: np.ndarray, targets: np.ndarray, theta: str, rate: float = 0.1
) -> tuple[float, float]:
    """One gradient step on the mean squared error, from the outputs in the prompt."""
    (a, b), error = line(theta), outputs - targets
    return float(a - rate * 2 * (error * x).mean()), float(b - rate * 2 * error.mean())
