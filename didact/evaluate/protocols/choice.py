"""Which of a demonstration's `choices` a model finds likeliest: by whole texts, so comparable across tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np

from didact.data import words
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.infer import lm as language_models
from didact.models.model import Model
from didact.types import LM, UserError

RIGHT = "the completion is the likeliest of the choices"


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """See `score_lm`."""
    return score_lm(language_models.of(model), scoring)


def score_lm(lm: LM, scoring: Scoring) -> dict[str, Measure]:
    """`choice` by log-prob, `choice_per_character` by log-prob over the choice's characters, which does not favour
    short ones; ties count as shares."""
    demos = chosen_from(scoring)
    scores = iter(lm.score([(d.prompt, choice) for d in demos for choice in d.choices]))
    right: dict[str, list[float]] = {"choice": [], "choice_per_character": []}
    for demo in demos:
        logp = np.array([next(scores).logp for _ in demo.choices])
        true = np.array([words.key(choice) == words.key(demo.completion) for choice in demo.choices])
        for name, length in (("choice", 1), ("choice_per_character", [max(len(c), 1) for c in demo.choices])):
            best = (value := logp / length) == value.max()
            right[name].append(float((best & true).sum() / best.sum()))
    return {
        "choice": mean_measure(right["choice"], "higher", RIGHT),
        "choice_per_character": mean_measure(right["choice_per_character"], "higher", f"{RIGHT}, per character"),
    }


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """How often a generated answer is the completion."""
    demos = chosen_from(scoring)
    replies = predict([d.prompt for d in demos])
    right = [float(words.key(a) == words.key(d.completion)) for a, d in zip(replies, demos, strict=True)]
    return {"choice": mean_measure(right, "higher", "answers that are the completion to the letter")}


def chosen_from(scoring: Scoring, protocol: str = "choice") -> Any:
    """The demonstrations, each with choices.

    Raises:
        UserError: one has no choices, or its completion is none of them.
    """
    demos = scoring.of("demo")
    for number, demo in enumerate(demos, 1):
        if words.key(demo.completion) not in map(words.key, demo.choices or ()):
            raise UserError(f"protocol '{protocol}': record {number}: `choices` must hold the completion")
    return demos


PROTOCOL = Protocol(
    kind="demo",
    primary="choice",
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
    target=lambda demo: demo.completion,
    answers=answers,
    answers_primary="choice",
    lm_score=score_lm,
    lm_primary="choice",
    lm_capability="score",
)
