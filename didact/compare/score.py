"""Everything the leaderboard shows of one arm's model, or of what answers in its place."""

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
SHOWN = 4  # of them shown


def primary_of(
    protocol: str, answers_only: bool, answer: str | None = None, by_text: bool = False, metrics: Iterable[str] = ()
) -> str:
    """The measure arms are ranked by: the user's first metric; final answers where it is said how to find them; where
    one of them gives answers and no model, one of answers; where tokenizers differ, one of text."""
    used = protocols.named(protocol)
    if not used.scored and (mine := next(iter(metrics), None)):
        return mine
    if answer is not None:
        return "final_answer"
    return str((used.answers_primary if answers_only else used.text_primary if by_text else None) or used.primary)


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
    """Measures of the protocol and the diagnostics, and sample answers.

    Args:
        protocol: its name.
        subject: a model, a server, or a function from prompts to answers.
        scoring: records that training did not see, and the start model.
        primary: what arms are ranked by.
        judge: says which of two answers is better, the model's or the start model's.
        predict: answers where the model does not give them by itself.
        by_text: measure text alone.
        samples: whether sample answers are wanted.
    """
    used, draw = protocols.named(protocol), _samples if samples else _none
    if callable(subject):
        assert used.answers is not None
        mine = own.score(scoring.metrics, subject, used, scoring)
        return used.answers(subject, scoring) | mine, draw(used, scoring, subject)
    if by_text or not isinstance(subject, Model):
        lm = language_models.of(subject)
        mine = own.score(scoring.metrics, _said(lm), used, scoring)
        return used.ask(lm, scoring) | mine, draw(used, scoring, _said(lm))
    out = _ranked(used, subject, scoring, primary)
    out |= protocols.named("collapse").score(subject, scoring)
    if subject.kind == "encoder":  # a reward model answers nothing
        return out, []
    out |= scoring.kept_general(subject)
    answer = predict or _greedy(subject, scoring)
    out |= own.score(scoring.metrics, answer, used, scoring)
    if judge is not None:
        prompts = scoring.some_prompts(DRAWN)
        theirs = scoring.once("answers of the start", lambda: _greedy(scoring.start, scoring)(prompts))
        out["win_rate"] = judges.win_rate(judge, prompts, list(answer(prompts)), theirs)
    return out, draw(used, scoring, answer)


def ranking(
    protocol: str, subject: Model | Predict, scoring: Scoring, primary: str, predict: Predict | None = None
) -> dict[str, Measure]:
    """The measures among which the one is that arms are ranked by, which is all that a search needs to know."""
    used = protocols.named(protocol)
    if callable(subject):
        assert used.answers is not None
        return used.answers(subject, scoring) | own.score(scoring.metrics, subject, used, scoring)
    if primary in scoring.metrics:
        return own.score(scoring.metrics, predict or _greedy(subject, scoring), used, scoring)
    return _ranked(used, subject, scoring, primary)


def _ranked(used: protocols.Protocol, model: Model, scoring: Scoring, primary: str) -> dict[str, Measure]:
    """The protocol's measures of a model, and those of its answers where arms are ranked by one of them."""
    out = used.score(model, scoring)
    if used.answers is not None and primary == used.answers_primary:
        out |= used.answers(_greedy(model, scoring), scoring)
    return out


def rules(protocol: str, scoring: Scoring) -> dict[str, float]:
    """What rules that need no model score on the same records."""
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


def _samples(used: protocols.Protocol, scoring: Scoring, answer: Callable[..., Any]) -> list[dict[str, Any]]:
    """Answers to records drawn at random, the same ones for every arm, each beside the right answer."""
    names = [n for n in (*used.scored, used.held_out) if n and scoring.records.get(n)]
    parts = {n: scoring.records[n] for n in names} or {"": used.records(scoring.records)}
    asked = protocols.drawn(used, scoring, parts, max(1, DRAWN // len(parts)))
    answers = list(answer([one.prompt for one in asked])) if asked else []
    return [{**one._asdict(), "answer": a} for one, a in zip(asked, answers, strict=True)]


def _none(used: protocols.Protocol, scoring: Scoring, answer: Callable[..., Any]) -> list[dict[str, Any]]:
    """No samples: they are shown of an arm's first seed alone."""
    return []


def _said(lm: LM) -> Predict:
    return lambda prompts: [draws[0] for draws in lm.generate(prompts)]


def _greedy(model: Model, scoring: Scoring) -> Predict:
    return lambda prompts: generate.generate(model, prompts, stop=scoring.stop)
