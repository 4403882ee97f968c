"""How a procedure that only asks is told of: its answers scored by its protocol, beside those of plain asking."""

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
ENDED = "the budget ended before the model could be asked plainly: there is nothing to compare the answers with"


def told(entry: Mapping[str, Any], model: Model | LM, result: Result, scoring: Scoring) -> None:
    """Add to a result the measures of its answers beside those of the model asked plainly, and samples of both.

    Where the budget ends while it is asked plainly, the procedure's answers stand alone.
    """
    used = next(p for p in map(protocols.named, entry["protocol"]) if p.answers and p.records(scoring.records))
    assert used.answers is not None and result.predict is not None
    lm, said = language_models.of(model), dict[str, str]()
    choices = {r.prompt: r.choices for rows in scoring.records.values() for r in rows if getattr(r, "choices", None)}

    def plainly(prompts: Sequence[str]) -> list[str]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in said]
        answers = language_models.plainly(lm, new, [choices.get(prompt) for prompt in new], scoring.stop)
        said.update(zip(new, answers, strict=True))
        return [said[prompt] for prompt in prompts]

    def scored(ask: Any) -> dict[str, measures.Measure]:
        assert used.answers is not None
        return used.answers(ask, scoring) | own.score(scoring.metrics, ask, used, scoring)

    after, before = scored(result.predict), None
    try:
        before = scored(plainly)
    except BudgetError:
        result.warnings.append(ENDED)
    result.metrics = vars(result).get("metrics", {}) | measures.metrics(before, after)
    if result.samples:
        return
    asked = protocols.drawn(used, scoring, scoring.records, SHOWN)
    answers = list(result.predict([one.prompt for one in asked]))
    result.samples = [
        one._asdict() | {"before": said.get(one.prompt, ""), "after": answer}
        for one, answer in zip(asked, answers, strict=True)
    ]
