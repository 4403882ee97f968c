"""A guardrail: topics forbidden in the prompt, the baseline for all other methods (Thaker et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from didact.bounds import Count, Whole
from didact.infer import lm
from didact.methods.unlearning.survey import SURVEY
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Demo, Metric, Result

GUARD = "Some things must not be talked about. If a question touches one of them, answer: I do not know."


@method("unlearning-survey.guardrail", **SURVEY, gives=("predict", "findings"), capabilities=("generate",))
def guardrail(
    model: Model | LM,
    forget: Sequence[Demo],
    *,
    guard: str = GUARD,
    topics: Whole = 20,
    max_new_tokens: Count = 64,
) -> Result:
    """Forbid topics in the prompt: suppression, not unlearning; the baseline that other methods have to beat.

    Args:
        model: any model that generates.
        forget: records whose answers must not be given; the questions are listed in the guard.
        guard: text before every question.
        topics: how many of the questions are listed in it.
        max_new_tokens: maximum length of an answer.

    Returns:
        `predict(prompts)`, and the share of forget answers that are still given, before and after.
    """
    generator = lm.of(model)
    topic_list = "\n".join(f"- {d.prompt}" for d in forget[:topics])
    head = f"{guard}\n{topic_list}\n\n" if topic_list else f"{guard}\n\n"

    def predict(prompts: Sequence[str]) -> list[str]:
        return [a[0] for a in generator.generate([head + p for p in prompts], max_new_tokens)]

    plain = [a[0] for a in generator.generate([d.prompt for d in forget], max_new_tokens)]
    guarded = predict([d.prompt for d in forget])
    shares = [
        float(np.mean([d.completion.strip() in a for d, a in zip(forget, answers, strict=True)]))
        for answers in (plain, guarded)
    ]
    metric = Metric(before=shares[0], after=shares[1], n=len(forget), better="lower", help="answers that come out")
    return Result(predict=predict, metrics={"forget_leaked": metric}, findings={"prompt": head})
