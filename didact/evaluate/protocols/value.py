"""Errors of predictions: the squared error of numbers, the error rate of labels."""

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
    """`value`: if all completions are numbers, the squared error over their variance, so that predicting their mean
    scores 1 (an answer without a number counts as the mean); else the share of answers that are not the completion."""
    demos = scoring.of("demo")
    replies = predict([d.prompt for d in demos])
    targets = reading.Targets([d.completion for d in demos], decimals=6)
    if not targets.numbers:
        missed = [float(words.key(a) != words.key(d.completion)) for a, d in zip(replies, demos, strict=True)]
        return {"value": mean_measure(missed, "lower", "answers that are not the completion")}
    target = np.array(targets.values)
    numbers = [reading.number(text) for text in replies]
    errors = (np.array([target.mean() if value is None else value for value in numbers]) - target) ** 2
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
    target=lambda demo: demo.completion,
    answers=answers,
    answers_primary="value",
)
