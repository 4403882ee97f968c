"""Plain few-shot prompting: the baseline without any training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count, Whole
from didact.evaluate import fewshot
from didact.evaluate.fewshot_prompts import Setup
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Demo, Result


@method(
    "few-shot",
    paper="Language Models are Few-Shot Learners",
    year=2020,
    source="arXiv:2005.14165",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    baseline=True,
)
def few_shot(
    model: Model | LM,
    demos: Sequence[Demo],
    test: Sequence[Demo] | None = None,
    *,
    shots: Whole = 16,
    rule: Literal["token", "sum", "character", "unconditional"] = "token",
    description: str = "",
    separator: str = "\n\n",
    metric: Literal["exact", "normalised", "f1", "bleu"] = "exact",
    max_new_tokens: Count = 64,
    stop: str = "\n",
    seed: int = 0,
) -> Result:
    """Answer with K demonstrations in the prompt, drawn at random for every question.

    Without `test` the demonstrations themselves are the test items, each left out of its own prompt.

    Args:
        model: scores choices, or generates free answers; causal, seq2seq or a server.
        demos: records to draw demonstrations from.
        test: items to score; with `choices` the most likely one is the answer, otherwise a text is generated.
        shots: K.
        rule: how choices are scored: mean over tokens, sum, mean over characters, or less the choice's own likelihood
            (unconditional).
        description: text before the demonstrations.
        separator: text between demonstrations, and before the query.
        metric: for free answers: exact to the letter, normalised as in SQuAD, token f1, or bleu.
        max_new_tokens: maximum length of a free answer.
        stop: a free answer ends before this text; empty does not stop.
        seed: random seed of the draws.

    Returns:
        `predict(prompts, choices=None)`, which gives one answer per prompt; metrics compared with zero-shot.

    Raises:
        UserError: choices and a model that cannot score, a right answer that is not among the choices.
    """
    start_time = time.monotonic()
    setup = Setup(
        shots=(0, shots) if shots else (0,), description=description, separator=separator, metric=metric,
        max_new_tokens=max_new_tokens, stop=stop, beams=1, seed=seed,
    )  # fmt: skip
    result = fewshot.evaluate(model, test or demos, demos if test else None, None, None, setup, rule, "few-shot")
    result.predict = fewshot.predictor(model, demos, shots, setup, rule, "few-shot")
    result.cost.seconds = time.monotonic() - start_time
    return result
