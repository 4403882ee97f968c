"""How well demonstrations are answered: token accuracy, exact greedy match, probability."""

from __future__ import annotations

from didact.evaluate import forgetting
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Of the completions of demonstrations, one number a record, averaged."""
    known = forgetting.answers(model, scoring.of("demo"), "data")
    exact = (known["extraction"] == 1.0).astype(float)
    return {
        "accuracy": mean_measure(known["accuracy"], "higher", "share of answer tokens that are the first choice"),
        "exact": mean_measure(exact, "higher", "answers greedy decoding gives in full"),
        "probability": mean_measure(known["probability"], "higher", "exp(-mean nll)"),
    }


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """Share of answers that are the completion to the letter, white space around them aside."""
    demos = scoring.of("demo")
    completions = predict([d.prompt for d in demos])
    right = [float(c.strip() == d.completion.strip()) for c, d in zip(completions, demos, strict=True)]
    return {"exact_answer": mean_measure(right, "higher", "answers that are the completion to the letter")}


PROTOCOL = Protocol(
    kind="demo",
    primary="accuracy",
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
    wanted=lambda demo: demo.completion,
    answers=answers,
    answers_primary="exact_answer",
)
