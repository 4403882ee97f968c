"""How well demonstrations are answered: token accuracy, exact greedy match, probability."""

from __future__ import annotations

from collections.abc import Mapping

from didact.data import words
from didact.evaluate import forgetting
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Of the completions of demonstrations, one number a record, averaged: with their end token where the start model
    ends its answers, else without it; the other way stands beside."""
    with_end, known = scoring.with_end(), forgetting.known(model, scoring.of("demo"), "data")
    other = f"{'without' if with_end else 'with'}_end"
    beside = {f"{name}_{other}": measure for name, measure in _of(known[not with_end], not with_end).items()}
    return _of(known[with_end], with_end) | beside


def _of(known: Mapping[str, forgetting.Array], end: bool) -> dict[str, Measure]:
    exact = (known["extraction"] == 1.0).astype(float)
    counted = forgetting.counted(end)
    return {
        "accuracy": mean_measure(known["accuracy"], "higher", f"share of answer tokens ranked first, {counted}"),
        "exact": mean_measure(exact, "higher", f"answers greedy decoding gives in full, {counted}"),
        "probability": mean_measure(known["probability"], "higher", f"exp(-mean nll), {counted}"),
    }


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """Share of answers that are the completion to the letter, white space around them aside; that begin with it where
    the start model does not end its answers."""
    demos = scoring.of("demo")
    completions = predict([d.prompt for d in demos])
    ended = scoring.with_end()
    right = [float(given(c, d.completion, ended)) for c, d in zip(completions, demos, strict=True)]
    return {"exact_answer": mean_measure(right, "higher", "answers that are the completion to the letter")}


def given(text: str, wanted: str, ended: bool = True) -> bool:
    """Whether a text is the answer wanted, or (of a model that does not end its answers) goes on after it."""
    text, wanted = words.key(text), words.key(wanted)
    return text == wanted or (not ended and text.startswith(wanted) and not text[len(wanted) :][:1].isalnum())


PROTOCOL = Protocol(
    kind="demo",
    primary="accuracy",
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
    wanted=lambda demo: demo.completion,
    answers=answers,
    answers_primary="exact_answer",
)
