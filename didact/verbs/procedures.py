"""Scores of a procedure that trains nothing: its answers by its protocol, beside those of plain prompting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from didact.errors import BudgetError
from didact.evaluate import measures, own, protocols
from didact.evaluate.protocols import Scoring
from didact.infer import lm as language_models
from didact.models.model import Model
from didact.types import LM, Result

SHOWN = 3  # sample answers
ENDED = "the budget ended before the model was prompted without the procedure: its answers have no comparison"


def add_answer_scores(entry: Mapping[str, Any], model: Model | LM, result: Result, scoring: Scoring) -> None:
    """Add to a result the measures of its answers beside those of the plainly prompted model, and samples of both.

    If the budget ends during plain prompting, only the procedure's answers are scored.
    """
    protocol = next(p for p in map(protocols.by_name, entry["protocol"]) if p.answers and p.records(scoring.records))
    assert protocol.answers is not None and result.predict is not None
    lm, plain_answers = language_models.of(model), dict[str, str]()
    choices = {r.prompt: r.choices for rows in scoring.records.values() for r in rows if getattr(r, "choices", None)}

    def answer_plainly(prompts: Sequence[str]) -> list[str]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in plain_answers]
        answers = language_models.plainly(lm, new, [choices.get(prompt) for prompt in new], scoring.stop)
        plain_answers.update(zip(new, answers, strict=True))
        return [plain_answers[prompt] for prompt in prompts]

    def score(ask: Any) -> dict[str, measures.Measure]:
        assert protocol.answers is not None
        return protocol.answers(ask, scoring) | own.score(scoring.metrics, ask, protocol, scoring)

    after, before = score(result.predict), None
    try:
        before = score(answer_plainly)
    except BudgetError:
        result.warnings.append(ENDED)
    result.metrics = vars(result).get("metrics", {}) | measures.metrics(before, after)
    if result.samples:
        return
    examples = protocols.drawn(protocol, scoring, scoring.records, SHOWN)
    answers = list(result.predict([example.prompt for example in examples]))
    result.samples = [
        example._asdict() | {"before": plain_answers.get(example.prompt, ""), "after": answer}
        for example, answer in zip(examples, answers, strict=True)
    ]
