"""Score candidate refinements by how well they follow the feedback: one list per record, higher is better.

Source: Scheurer et al. 2023, arXiv:2303.16755, which uses `judge` (InstructRM).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from didact.infer import best_of, embed, rank, yesno
from didact.infer import lm as language_models
from didact.infer.yesno import Mean, Question
from didact.models.model import Model
from didact.types import LM, Critique, Reward, UserError

Selector = Literal["judge", "embedding", "reward", "random", "length", "logp"]
Candidates = Sequence[Sequence[str]]

_PREAMBLE = "Task: {prompt}\n\nFirst answer: {completion}\n\nFeedback: {feedback}\n\nNew answer: {refinement}\n\n"
INCORPORATED = (
    Question(_PREAMBLE + "Does the new answer do what the feedback asks for? Yes or no?\n\nReply:"),
    Question(_PREAMBLE + "Was the first answer mended as the feedback says? Yes or no?\n\nReply:"),
    Question(_PREAMBLE + "Would whoever gave the feedback be content with the new answer? Yes or no?\n\nReply:"),
    Question(_PREAMBLE + "The new answer takes up the feedback. True or false?\n\nReply:", "True", "False"),
    Question(_PREAMBLE + "The new answer still has what the feedback complains of. True or false?\n\nReply:", "False",
             "True"),
)  # fmt: skip
"""Five wordings of one question, two of them answered true or false, as in the paper (with other words)."""


def judged(
    judge: LM | Model, questions: Sequence[Question], critiques: Sequence[Critique], candidates: Candidates,
    mean: Mean = "probability",
) -> list[list[float]]:  # fmt: skip
    """P(yes, it follows the feedback) of every candidate, pooled over the questions; NaN if the judge says neither.

    Args:
        judge: any model that gives next-token log-probs.
        questions: templates of `{prompt}`, `{completion}`, `{feedback}` and `{refinement}`.
        critiques: the records.
        candidates: refinements of each.
        mean: of probabilities or of logits.
    """
    fields = [
        {"prompt": str(c.prompt), "completion": c.completion, "feedback": c.feedback, "refinement": text}
        for c, texts in zip(critiques, candidates, strict=True) for text in texts
    ]  # fmt: skip
    values = iter(yesno.ask(judge, questions, fields, mean) if fields else [])
    return [[next(values) for _ in texts] for texts in candidates]


def similar(model: LM | Model, critiques: Sequence[Critique], candidates: Candidates) -> list[list[float]]:
    """Cosine of feedback and refinement in the model's hidden states.

    Raises:
        UserError: the model is served: servers return no hidden states.
    """
    local = language_models.of(model)
    if not isinstance(local, language_models.Local):
        raise UserError("selector embedding needs a model with hidden states, which a served model does not return")
    feedback = [c.feedback for c, texts in zip(critiques, candidates, strict=True) for _ in texts]
    targets = embed.embed(local.model, feedback)
    vectors = embed.embed(local.model, [text for texts in candidates for text in texts])
    values = iter(embed.cosine(targets, vectors).tolist() if len(vectors) else [])
    return [[next(values) for _ in texts] for texts in candidates]


def rewarded(reward: Reward, critiques: Sequence[Critique], candidates: Candidates) -> list[list[float]]:
    """The reward of prompt and refinement; it does not see the feedback."""
    pairs = [(str(c.prompt), text) for c, texts in zip(critiques, candidates, strict=True) for text in texts]
    values = iter(reward([p for p, _ in pairs], [t for _, t in pairs]) if pairs else [])
    return [[float(next(values)) for _ in texts] for texts in candidates]


def likely(model: LM | Model, prompts: Sequence[str], candidates: Candidates) -> list[list[float]]:
    """Log-prob of every candidate after its refinement prompt, MEAN over its tokens."""
    scorer = language_models.need(model, "score", by="selector logp")
    pairs = [(p, text) for p, texts in zip(prompts, candidates, strict=True) for text in texts]
    values = iter(rank.by_rule("token", logp, tokens) for logp, tokens in scorer.score(pairs))
    return [[next(values) for _ in texts] for texts in candidates]


def at_random(candidates: Candidates, seed: int, first: int = 0) -> list[list[float]]:
    """Uniform random scores, fixed by the seed and the record's index, which is `first` for the first of these."""
    return [np.random.default_rng([seed, 95, first + i]).random(len(t)).tolist() for i, t in enumerate(candidates)]


def longest(candidates: Candidates) -> list[list[float]]:
    """Length in characters."""
    return [[float(len(text)) for text in texts] for texts in candidates]


def picked(c: Critique, texts: Sequence[str], scores: Sequence[float], number: int, selector: str) -> Critique:
    """The record with its highest-scoring refinement; a NaN score ranks below all others."""
    pick = best_of.pick(texts, [-math.inf if math.isnan(s) else s for s in scores])
    finite = [None if s == -math.inf else s for s in pick.scores]
    extra = {"round": number, "selector": selector, "score": finite[pick.number], "candidates": list(texts)}
    return dataclasses.replace(c, refinement=pick.text, extra=c.extra | extra | {"scores": finite})


def questions_of(source: str | Sequence[str]) -> tuple[Question, ...]:
    """The judge's questions from a file, one template, or several; five built-in ones by default.

    A template `template|yes|no` sets its own two answers.

    Raises:
        UserError: the file cannot be read; a template has an unknown field.
    """
    if isinstance(source, str) and "{" in source:
        source = [source]
    if isinstance(source, str) and source:
        questions = [_question(row, f"{source}:{n}") for n, row in enumerate(_lines(source), 1)]
    else:
        questions = [Question(*text.rsplit("|", 2)) if text.count("|") > 1 else Question(text) for text in source]
    for question in questions:
        yesno.fill(
            question.template, dict.fromkeys(("prompt", "completion", "feedback", "refinement"), ""), "questions"
        )
    return tuple(questions) or INCORPORATED


def _lines(path: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"questions: {path} cannot be read: {error}") from None


def _question(line: str, location: str) -> Question:
    try:
        row = json.loads(line)
        return Question(str(row["template"]), str(row.get("yes", "Yes")), str(row.get("no", "No")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{location}: a JSON object with 'template' (and 'yes', 'no') is expected") from None
