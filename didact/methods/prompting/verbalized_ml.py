"""Verbalized machine learning: a text is the model, and a language model applies and rewrites it (Xiao et al. 2024)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

from didact.infer import ask, remote, verbal
from didact.infer.lm import need
from didact.models.model import Model
from didact.registry import method
from didact.tools import formulas
from didact.types import LM, Demo, Result, UserError


@method(
    "verbalized-ml",
    paper="Verbalized Machine Learning: Revisiting Machine Learning with Language Models",
    year=2024,
    source="arXiv:2406.04344",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    protocol=("value",),
    answers="questions",
    presets={
        "paper": {"learning.prefix": False},
        "full-batch": {"learning.batch": 0},
        "no-memory": {"learning.memory": 0},
        "gated": {"learning.accept": True},
        "best-of-4": {"learning.accept": True, "learning.candidates": 4},
    },
)
def verbalized_ml(
    model: Model | LM,
    train: Sequence[Demo],
    questions: Sequence[Demo] | None = None,
    *,
    optimizer: str | LM = "learner",
    task: str = "Predict the output for the input.",
    prior: str = "",
    learning: verbal.Learning = verbal.Learning(),
    asking: ask.Asking = verbal.ASKING,
    seed: int = 0,
) -> Result:
    """Learn a model you can read: its parameters are a text, which a learner applies and an optimiser rewrites.

    The text begins as the task and what you know of it. A step predicts a batch and shows the optimiser the raw
    inputs, outputs and targets, which says what is wrong and gives new descriptions:

        yhat_m = LM(theta, x_m);   new = LM(theta, {(x_m, yhat_m, y_m)}, its last steps);   theta = theta_0 + " " + new

    No loss is needed; it is computed to be shown. Targets that are all numbers make a regression (mean squared error),
    others a classification. Where the last text has a formula (`y = 3x + 4`), it is also computed exactly: what the
    learner loses beyond that is its arithmetic.

    Args:
        model: the learner, and the optimiser where there is no other.
        train: inputs (`prompt`) and targets (`completion`).
        questions: inputs to predict afterwards; those with a completion are scored.
        optimizer: who rewrites the text: the learner, a folder, or a served model's address.
        task: what is to be predicted, in words.
        prior: what is known of it, in words; stays in front of every text (unless `learning.prefix` is off), so that
            a wrong one is never unlearned.
        learning: batches, epochs, memory, candidates, the gate.
        asking: lengths, temperature, tries of an answer that cannot be read, budget.
        seed: of the order of examples and of draws.

    Returns:
        `predict`, a scikit-learn estimator (`fit`, `predict`, `score`, and a call with texts); the steps with their
        texts, losses and explanations as history; findings with the last text; the questions with predictions.

    Raises:
        UserError: no completion, or too few examples for the gate.
    """
    began = time.monotonic()
    if lost := [i for i, demo in enumerate(train, 1) if not demo.completion.strip()]:
        raise UserError(f"train: record {lost[0]} has no completion: the target is learnt from")
    lm = need(model, "generate", by="verbalized-ml")
    who = remote.named(optimizer) if isinstance(optimizer, str) and optimizer != "learner" else optimizer
    other = None if isinstance(who, str) else need(who, "generate", by="verbalized-ml's optimizer")
    found = verbal.VerbalModel(lm, other, task, prior, learning, asking, seed)
    found.fit([d.prompt for d in train], [d.completion for d in train])
    asked = list(questions or ())
    given = found([q.prompt for q in asked]) if asked else []
    findings: dict[str, Any] = found.asker_.findings() | {
        "theta": found.theta_,
        "loss_first": found.steps_[0].loss if found.steps_ else None,
        "loss_last": found.steps_[-1].loss if found.steps_ else None,
        "accepted": sum(step.accepted for step in found.steps_),
        "by_code": _by_code(found.theta_, train) if found.targets_.numbers else None,
    }
    result = Result(
        records=[dataclasses.replace(q, extra=q.extra | {"prediction": a}) for q, a in zip(asked, given, strict=True)],
        predict=found, history=found.history(), findings=findings,
        transcript=list(found.asker_.demos()), warnings=found.asker_.warnings(),
    )  # fmt: skip
    result.cost.seconds = time.monotonic() - began
    result.cost.calls = len(found.asker_.exchanges)
    return result


def _by_code(theta: str, train: Sequence[Demo]) -> float | None:
    """Mean squared error of the formula in a text, computed; None where it has none, or inputs are no numbers."""
    function = formulas.found(theta)
    try:
        pairs = [(float(d.prompt), float(d.completion)) for d in train]
    except ValueError:
        return None
    loss = sum((function(x) - y) ** 2 for x, y in pairs) / len(pairs) if function else math.nan
    return loss if math.isfinite(loss) else None
