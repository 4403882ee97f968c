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
    """Learn a readable model: its parameters are a text, which a learner applies and an optimiser rewrites.

    The text begins as the task and what you know of it. A step predicts a batch and shows the optimiser the raw inputs,
    outputs and targets; it says what is wrong and writes a new description:

        yhat_m = LM(theta, x_m);   new = LM(theta, {(x_m, yhat_m, y_m)}, its last steps);   theta = theta_0 + " " + new

    No loss is needed; it is computed for the report. Targets that are all numbers make a regression (mean squared
    error), others a classification. If the last text has a formula (`y = 3x + 4`), it is also computed exactly: the
    learner's loss beyond that is due to its arithmetic.

    Args:
        model: the learner, and the optimiser if no other is given.
        train: inputs (`prompt`) and targets (`completion`).
        questions: inputs to predict afterwards; those with a completion are scored.
        optimizer: what rewrites the text: the learner, a folder, or a served model's address.
        task: description of what to predict.
        prior: prior knowledge, in words; stays in front of every text (unless `learning.prefix` is off), so that a
            wrong one is never unlearned.
        learning: batches, epochs, memory, candidates, the gate.
        asking: lengths, temperature, retries of an answer that cannot be read, budget.
        seed: random seed of the order of examples and of samples.

    Returns:
        `predict`, a scikit-learn estimator (`fit`, `predict`, `score`, and a call with texts); the steps with their
        texts, losses and explanations as history; findings with the last text; the questions with predictions.

    Raises:
        UserError: no completion, or too few examples for the gate.
    """
    start_time = time.monotonic()
    if missing := [i for i, demo in enumerate(train, 1) if not demo.completion.strip()]:
        raise UserError(f"train: record {missing[0]} has no completion: the target is learnt from")
    lm = need(model, "generate", by="verbalized-ml")
    source = remote.open_lm(optimizer) if isinstance(optimizer, str) and optimizer != "learner" else optimizer
    optimizer_lm = None if isinstance(source, str) else need(source, "generate", by="verbalized-ml's optimizer")
    estimator = verbal.VerbalModel(lm, optimizer_lm, task, prior, learning, asking, seed)
    estimator.fit([d.prompt for d in train], [d.completion for d in train])
    items = list(questions or ())
    predictions = estimator([q.prompt for q in items]) if items else []
    findings: dict[str, Any] = estimator.asker_.findings() | {
        "theta": estimator.theta_,
        "loss_first": estimator.steps_[0].loss if estimator.steps_ else None,
        "loss_last": estimator.steps_[-1].loss if estimator.steps_ else None,
        "accepted": sum(step.accepted for step in estimator.steps_),
        "by_code": _by_code(estimator.theta_, train) if estimator.targets_.numbers else None,
    }
    result = Result(
        records=[
            dataclasses.replace(q, extra=q.extra | {"prediction": a}) for q, a in zip(items, predictions, strict=True)
        ],
        predict=estimator, history=estimator.history(), findings=findings,
        transcript=list(estimator.asker_.demos()), warnings=estimator.asker_.warnings(),
    )  # fmt: skip
    result.cost.seconds = time.monotonic() - start_time
    result.cost.calls = len(estimator.asker_.exchanges)
    return result


def _by_code(theta: str, train: Sequence[Demo]) -> float | None:
    """Mean squared error of the formula in a text, computed exactly; None without one, or if inputs are not numbers."""
    function = formulas.parse(theta)
    try:
        pairs = [(float(d.prompt), float(d.completion)) for d in train]
    except ValueError:
        return None
    loss = sum((function(x) - y) ** 2 for x, y in pairs) / len(pairs) if function else math.nan
    return loss if math.isfinite(loss) else None
