"""Transformers learn in-context by gradient descent (von Oswald et al. 2023)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

from didact.bounds import Count
from didact.data.streams import Tensors
from didact.evaluate import learners, numbers
from didact.evaluate.learners import EvaluationConfig
from didact.evaluate.references import gradient
from didact.learn import episodes
from didact.models import mixers
from didact.models.mixers import MixerConfig
from didact.models.model import Model
from didact.registry import method
from didact.types import Example, Fit, Metric, Result

TUNING, REPORT = 1, 2  # seed tags of draws that training never sees


@method(
    "mesa-gd",
    paper="Transformers learn in-context by gradient descent",
    year=2023,
    source="arXiv:2212.07677",
    gives=("models", "predict", "findings"),
    capabilities=("train",),
    presets={
        "recurrent-2": {"mixer.layers": 2},
        "recurrent-5": {"mixer.layers": 5, "mixer.activation_clip": 10.0},
        "softmax-2": {"mixer.attention": "softmax", "mixer.heads": 2},
        "classic": {
            "mixer.layout": "classic",
            "mixer.layers": 2,
            "mixer.shared": False,
            "mixer.attention": "softmax-first",
            "mixer.key_size": 20,
        },
        "deep-features": {"mixer.features": 40},
    },
)
def mesa_gd(
    tasks: Sequence[Example] | episodes.Sampler,
    model: Model | None = None,
    *,
    mixer: MixerConfig = MixerConfig(),
    restarts: Count = 3,
    context: Count | None = None,
    standardize: bool = False,
    evaluation: EvaluationConfig = EvaluationConfig(),
    fit: Fit = Fit(lr=1e-3, steps=5000, rows=2048, betas=(0.9, 0.98), schedule="constant", clip=0.001),
) -> Result:
    """Train a model to solve small regressions in its forward pass, and identify the algorithm it runs.

    Linear self-attention over tokens `(x_i, y_i)` and a query `(x, 0)` is meta-trained on many tasks,

        E <- E + sum_h (E Wq_h)(E_ctx Wk_h)^T (E_ctx Wv_h) P_h,    y_hat = -(y-slot of the query),
        loss = 1/2 ||y - y_hat||^2 of the query, averaged over tasks,

    and compared on held-out tasks with k steps of gradient descent, GD++, ridge, least squares and zero, all tuned on
    the training tasks: loss gap, prediction difference, cosine and distance of the sensitivities `d y_hat / d x`. Given
    a `model`, nothing is trained and that model is compared instead.

    Args:
        tasks: regression tasks with the same number of inputs d and targets o; or, in Python, a sampler
            `(seed, count) -> Tensors` that draws fresh ones.
        model: a language model (rows are written as numbers; only its behaviour is tested) or a trained module.
        mixer: the architecture; the paper's is one layer of linear attention with one head.
        restarts: trainings from different weights; the one with the lowest TRAINING loss is kept.
        context: context rows per task; by default as many as every task has.
        standardize: train and compare in columns centred and scaled by the training tasks; `predict` takes and returns
            raw numbers.
        evaluation: data and settings of the report.
        fit: training; with more than three layers the paper has lr 5e-4, without shared weights 50000 steps.

    Returns:
        `models["lsa"]`; `predict(x (N, d), y (N,) or (N, o), query (d,) or (M, d))`; findings.

    Raises:
        UserError: tasks that differ in d or o, hold NaN, or are too few.
    """
    start_time = time.monotonic()
    train, test, units = episodes.sides(tasks, evaluation.held_out, context, standardize)
    report = test((fit.seed, 0, REPORT), len(test) if isinstance(test, episodes.Pool) else evaluation.tasks)
    tuning = train((fit.seed, 0, TUNING), len(train) if isinstance(train, episodes.Pool) else evaluation.tasks)
    result = Result()

    if model is None:
        inputs, outputs, rows = report["query"].shape[1], report["target"].shape[1], report["x"].shape[1]
        spec = dataclasses.asdict(mixer)
        runs = episodes.meta_train(lambda: mixers.LinearSelfAttention(inputs, outputs, **spec), train, fit, restarts)
        module, result.history = runs[0].module, runs[0].history
        result.findings["training_loss"] = [run.training_loss for run in runs]
        result.cost.tokens = 3 * restarts * len(result.history) * fit.rows * (rows + 1)
        learner = reported = learners.of_module(module)
    else:
        if model.kind == "module":
            learner = learners.of_module(model.module)
        else:
            report = Tensors({name: values[: evaluation.lm_tasks] for name, values in report.tensors.items()})
            grid = numbers.grid_for(tuning["y"], evaluation.lm_grid, units)
            learner = numbers.NumberLearner(model, grid, evaluation.lm_digits)
        reported = learners.in_units(learner, units) if units else learner

    # The classic layout spends its first layer on joining x and y.
    steps = max(1, mixer.layers - 1) if mixer.layout == "classic" else mixer.layers
    references, tuned = gradient.tuned_references(train, tuning, steps, mixer.shared, fit.seed)
    result.findings |= learners.report(reported, references, report) | {"references": tuned}
    if model is None:
        result.figures = learners.ood({"learner": learner, "gd": references["gd"]}, report)
        if units:
            mixers.set_units(module, units)
        result.models = {"lsa": Model(module, kind="module")}
    result.predict = learners.with_numpy(learner)
    result.metrics, result.warnings = _metrics(result.findings)
    result.cost.seconds = time.monotonic() - start_time
    return result


def _metrics(findings: dict[str, Any]) -> tuple[dict[str, Metric], list[str]]:
    gd, zero, n = findings["alignment"]["gd"], findings["alignment"]["zero"], findings["tasks"]

    def metric(of: dict[str, float], better: Literal["higher", "lower"], text: str, before: float | None) -> Metric:
        return Metric(after=of["estimate"], before=before, n=n, ci=(of["low"], of["high"]), better=better, help=text)

    loss = metric(
        gd["loss"], "lower", "query loss on held-out tasks; before: answering 0", zero["reference_loss"]["estimate"]
    )
    cosine = metric(gd["cosine"], "higher", "sensitivities of the learner and of gradient descent", None)
    no_better = zero["loss_gap"]["high"] >= 0
    text = "no better than answering 0 on held-out tasks; train longer, with more restarts, or --standardize"
    return {"loss": loss, "cosine_to_gd": cosine}, [text] if no_better else []
