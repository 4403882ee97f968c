"""Score one arm's model, or the function that predicts in its place, for the leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from didact.evaluate import judges, own, protocols
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Predict, Scoring
from didact.infer import generate
from didact.infer import lm as language_models
from didact.models.model import Model
from didact.types import LM

DRAWN = 32  # prompts answered for judges and samples


def primary_of(
    protocol: str, answers_only: bool, answer: str | None = None, by_text: bool = False, metrics: Iterable[str] = ()
) -> str:
    """The measure arms are ranked by: the user's first metric; `final_answer` where `answer` says how to extract it;
    a measure of answers where some arm has no model; a measure of text where tokenizers differ."""
    spec = protocols.by_name(protocol)
    if not spec.scored and (metric := next(iter(metrics), None)):
        return metric
    if answer is not None:
        return "final_answer"
    return str((spec.answers_primary if answers_only else spec.text_primary if by_text else None) or spec.primary)


def score(
    protocol: str,
    subject: Model | LM | Predict,
    scoring: Scoring,
    primary: str,
    judge: judges.Judge | None = None,
    predict: Predict | None = None,
    by_text: bool = False,
    samples: bool = True,
) -> tuple[dict[str, Measure], list[dict[str, Any]]]:
    """Compute the protocol's measures, the diagnostics, and sample answers.

    Args:
        protocol: its name.
        subject: a model, a server, or a function from prompts to answers.
        scoring: held-out records, and the start model.
        primary: the measure arms are ranked by.
        judge: decides which of two answers is better, the model's or the start model's.
        predict: gives the answers in place of the model's own decoding.
        by_text: measure text alone.
        samples: whether to return sample answers.
    """
    spec, draw = protocols.by_name(protocol), _samples if samples else _no_samples
    if callable(subject):
        assert spec.answers is not None
        own_metrics = own.score(scoring.metrics, subject, spec, scoring)
        return spec.answers(subject, scoring) | own_metrics, draw(spec, scoring, subject)
    if by_text or not isinstance(subject, Model):
        lm = language_models.of(subject)
        own_metrics = own.score(scoring.metrics, _first_draws(lm), spec, scoring)
        return spec.ask(lm, scoring) | own_metrics, draw(spec, scoring, _first_draws(lm))
    out = _model_measures(spec, subject, scoring, primary)
    out |= protocols.by_name("collapse").score(subject, scoring)
    if subject.kind == "encoder":  # a reward model generates no answers
        return out, []
    out |= scoring.general_measures(subject)
    answer = predict or _greedy(subject, scoring)
    out |= own.score(scoring.metrics, answer, spec, scoring)
    if judge is not None:
        prompts = scoring.some_prompts(DRAWN)
        start_answers = scoring.once("answers of the start", lambda: _greedy(scoring.start, scoring)(prompts))
        out["win_rate"] = judges.win_rate(judge, prompts, list(answer(prompts)), start_answers)
    return out, draw(spec, scoring, answer)


def ranking(
    protocol: str, subject: Model | Predict, scoring: Scoring, primary: str, predict: Predict | None = None
) -> dict[str, Measure]:
    """Compute only the group of measures that has the primary one: a learning-rate search needs no more."""
    spec = protocols.by_name(protocol)
    if callable(subject):
        assert spec.answers is not None
        return spec.answers(subject, scoring) | own.score(scoring.metrics, subject, spec, scoring)
    if primary in scoring.metrics:
        return own.score(scoring.metrics, predict or _greedy(subject, scoring), spec, scoring)
    return _model_measures(spec, subject, scoring, primary)


def _model_measures(spec: protocols.Protocol, model: Model, scoring: Scoring, primary: str) -> dict[str, Measure]:
    """The protocol's measures of a model, and of its answers if arms are ranked by one of those."""
    out = spec.score(model, scoring)
    if spec.answers is not None and primary == spec.answers_primary:
        out |= spec.answers(_greedy(model, scoring), scoring)
    return out


def rules(protocol: str, scoring: Scoring) -> dict[str, float]:
    """Scores of rules that need no model, on the same records."""
    if protocol != "prefer":
        return {}
    sizes = [
        [len(scoring.start.tokenizer(side)["input_ids"]) for side in (p.chosen, p.rejected)]
        for p in scoring.of("preference")
    ]
    shorter = shorter_wins(sizes)
    return {"the shorter answer is the better": shorter, "the longer answer is the better": 1 - shorter}


def shorter_wins(lengths: Sequence[Sequence[int]]) -> float:
    """How often the rule "the shorter answer is the better" is right; lengths are (chosen, rejected)."""
    sides = np.asarray(lengths)
    return float(np.mean((sides[:, 0] < sides[:, 1]) + 0.5 * (sides[:, 0] == sides[:, 1])))


def _samples(spec: protocols.Protocol, scoring: Scoring, answer: Callable[..., Any]) -> list[dict[str, Any]]:
    """Answers to records drawn at random, the same for every arm, each with its reference answer."""
    names = [n for n in (*spec.scored, spec.held_out) if n and scoring.records.get(n)]
    parts = {n: scoring.records[n] for n in names} or {"": spec.records(scoring.records)}
    rows = protocols.drawn(spec, scoring, parts, max(1, DRAWN // len(parts)))
    answers = list(answer([row.prompt for row in rows])) if rows else []
    return [{**row._asdict(), "answer": answered} for row, answered in zip(rows, answers, strict=True)]


def _no_samples(spec: protocols.Protocol, scoring: Scoring, answer: Callable[..., Any]) -> list[dict[str, Any]]:
    """No samples: only those of an arm's first seed are shown."""
    return []


def _first_draws(lm: LM) -> Predict:
    return lambda prompts: [draws[0] for draws in lm.generate(prompts)]


def _greedy(model: Model, scoring: Scoring) -> Predict:
    return lambda prompts: generate.generate(model, prompts, stop=scoring.stop)
