"""How well a model translates sentences: chrF, BLEU and exact matches."""

from __future__ import annotations

import functools

from didact.data import translation
from didact.evaluate import translation as scores
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.infer import generate
from didact.models.model import Model
from didact.types import Parallel

TOKENS = 128  # of a translation


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Score greedy zero-shot translations."""
    return answers(functools.partial(generate.generate, model, max_new_tokens=TOKENS, stop=("\n",)), scoring)


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """Score the translations by any predictor; only the first line of each counts."""
    pairs: list[Parallel] = [p for p in scoring.of("parallel") if p.target]
    if not pairs:
        return {}
    translations = [
        translation.read(text, p.target_lang or "") or ""
        for text, p in zip(predict([translation.prompt(p) for p in pairs]), pairs, strict=True)
    ]
    return scores.measures(translations, [p.target for p in pairs], scoring.seed)


PROTOCOL = Protocol(
    kind="parallel",
    primary="chrf",
    score=score,
    prompts=lambda scoring: [translation.prompt(p) for p in scoring.of("parallel")],
    target=lambda pair: pair.target,
    answers=answers,
    answers_primary="chrf",
)
