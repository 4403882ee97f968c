"""How far predictions are from what is wanted: of numbers the squared error, of labels the share missed."""

from __future__ import annotations

import functools
import math

import numpy as np

from didact.data import verbal_reading as reading
from didact.data import words
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.infer import generate
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """See `answers`."""
    return answers(functools.partial(generate.generate, model, stop=scoring.stop), scoring)


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """`value`: where all completions are numbers the squared error over their variance, so that 1 is the error of their
    mean, which stands for an answer without a number; else the share of answers that are not the completion."""
    demos = scoring.of("demo")
    given = predict([d.prompt for d in demos])
    wanted = reading.Targets([d.completion for d in demos], decimals=6)
    if not wanted.numbers:
        wrong = [float(words.key(a) != words.key(d.completion)) for a, d in zip(given, demos, strict=True)]
        return {"value": mean_measure(wrong, "lower", "answers that are not the completion")}
    target = np.array(wanted.values)
    said = [reading.number(text) for text in given]
    errors = (np.array([target.mean() if value is None else value for value in said]) - target) ** 2
    spread = float(target.var()) or 1.0
    return {
        "value": mean_measure(errors / spread, "lower", "squared error over the variance of the completions", "ratio"),
        "rmse": Measure(math.sqrt(float(errors.mean())), len(demos), "lower", help="root mean squared error"),
    }


PROTOCOL = Protocol(
    kind="demo",
    primary="value",
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
    wanted=lambda demo: demo.completion,
    answers=answers,
    answers_primary="value",
)
