"""Transformers learn in-context by gradient descent (von Oswald et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from didact.data.streams import Tensors
from didact.evaluate import learners, numbers
from didact.learn import episodes
from didact.models import mixers
from didact.models.model import Model
from didact.registry import method
from didact.types import Example, Fit, Metric, Result, UserError

TUNING, REPORT = 1, 2  # tags of draws that training never sees


@method(
    "mesa-gd",
    paper="Transformers learn in-context by gradient descent",
    year=2023,
    source="arXiv:2212.07677",
    gives=("models", "predict", "findings"),
    capabilities=("train",),
    presets={
        "recurrent-2": {"layers": 2},
        "recurrent-5": {"layers": 5, "activation_clip": 10.0},
        "softmax-2": {"attention": "softmax", "heads": 2},
        "classic": {"layout": "classic", "layers": 2, "shared": False, "attention": "softmax-first", "key_size": 20},
        "deep-features": {"features": 40},
    },
)
def mesa_gd(
    tasks: Sequence[Example] | episodes.Sampler,
    model: Model | None = None,
    *,
    layers: int = 1,
    shared: bool = True,
    heads: int = 1,
    key_size: int | None = None,
    attention: Literal["linear", "softmax", "softmax-first"] = "linear",
    include_query: bool = False,
    layer_norm: bool = False,
    readout: Literal["slot", "linear"] = "slot",
    y_update_only: bool = False,
    layout: Literal["joint", "classic"] = "joint",
    features: int = 0,
    activation_clip: float | None = None,
    init: float = 0.002,
    restarts: int = 3,
    context: int | None = None,
    standardize: bool = False,
    held_out: float = 0.2,
    eval_tasks: int = 10_000,
    lm_tasks: int = 32,
    lm_grid: int = 41,
    lm_digits: int = 2,
    fit: Fit = Fit(  # noqa: B008  (frozen)
        lr=1e-3, steps=5000, rows=2048, betas=(0.9, 0.98), schedule="constant", clip=0.001
    ),
) -> Result:
    """Train a model that learns small regressions in its forward pass, and say which algorithm it runs.

    Linear self-attention over tokens `(x_i, y_i)` and a query `(x, 0)` is meta-trained on many tasks,

        E <- E + sum_h (E Wq_h)(E_ctx Wk_h)^T (E_ctx Wv_h) P_h,    y_hat = -(y-slot of the query),
        loss = 1/2 ||y - y_hat||^2 of the query, averaged over tasks,

    and compared on held-out tasks with k steps of gradient descent, GD++, ridge, least squares and zero,
    all tuned on the training tasks: loss gap, prediction difference, cosine and distance of the
    sensitivities `d y_hat / d x`. Given a `model`, nothing is trained and that model is compared instead.

    Args:
        tasks: regression tasks with the same number of inputs d and targets o; or, in Python, a sampler
            `(seed, count) -> Tensors` that draws fresh ones.
        model: a language model (rows are written as numbers; behavioural, black-box) or a trained module.
        layers: how often the tokens are mixed; as many steps has the GD it is compared with (classic: one less).
        shared: all layers have the same weights.
        heads: attention heads; softmax needs two to come close to GD.
        key_size: width of a head's keys and values; d + o by default, and no less can represent a GD step.
        attention: linear, softmax, or softmax in the first layer only.
        include_query: the query is a key and a value too.
        layer_norm: normalise tokens before every layer.
        readout: minus the query's y-slot, or a learned linear map.
        y_update_only: layers change y-slots only.
        layout: x and y of a row in one token (joint) or in two (classic).
        features: width of an MLP applied to x first, for tasks that are not linear; 0 has none.
        activation_clip: largest token entry after a layer; the paper has 10 for more than 3 layers.
        init: scale of the initial weights' variance; small ones can stay long at a saddle.
        restarts: trainings from different weights; the one of lowest TRAINING loss is kept.
        context: rows a task shows; by default the most that every task has.
        standardize: train and compare in columns centred and scaled by the training tasks; raw numbers go in and out.
        held_out: share of the tasks kept for the report, by a hash of their content.
        eval_tasks: tasks in the report where a sampler draws them.
        lm_tasks: held-out tasks a language model is asked.
        lm_grid: candidate answers a language model scores: lm_tasks (1 + 2 d) lm_grid texts in all.
        lm_digits: decimals it reads and writes.
        fit: training; with more than three layers the paper has lr 5e-4, without shared weights 50000 steps.

    Returns:
        `models["lsa"]`; `predict(x (N, d), y (N,) or (N, o), query (d,) or (M, d))`; findings.

    Raises:
        UserError: tasks that differ in d or o, hold NaN, or are too few.

    """
    began = time.monotonic()
    if min(layers, heads, restarts) < 1 or min(eval_tasks, lm_tasks, lm_grid) < 2:
        raise UserError("layers, heads, restarts must be at least 1; eval_tasks, lm_tasks, lm_grid at least 2")
    train, held, units = episodes.sides(tasks, held_out, context, standardize)
    report = held((fit.seed, 0, REPORT), len(held) if isinstance(held, episodes.Pool) else eval_tasks)
    tuning = train((fit.seed, 0, TUNING), len(train) if isinstance(train, episodes.Pool) else eval_tasks)
    result = Result()

    if model is None:
        inputs, outputs, rows = report["query"].shape[1], report["target"].shape[1], report["x"].shape[1]
        spec: dict[str, Any] = {
            "layers": layers, "heads": heads, "key_size": key_size, "shared": shared, "attention": attention,
            "include_query": include_query, "layer_norm": layer_norm, "readout": readout, "layout": layout,
            "y_update_only": y_update_only, "features": features, "activation_clip": activation_clip, "init": init,
        }  # fmt: skip
        runs = episodes.meta_train(
            lambda: mixers.LinearSelfAttention(inputs, outputs, **spec), train, fit, restarts, identity=spec
        )
        module, result.history = runs[0].module, runs[0].history
        result.findings["training_loss"] = [run.training_loss for run in runs]
        result.cost.tokens = 3 * restarts * len(result.history) * fit.rows * (rows + 1)
        learner = seen = learners.of_module(module)
    else:
        if model.kind == "module":
            learner = learners.of_module(model.module)
        else:
            report = Tensors({name: values[:lm_tasks] for name, values in report.tensors.items()})
            learner = numbers.NumberLearner(model, numbers.grid_for(tuning["y"], lm_grid, units), lm_digits)
        seen = learners.in_units(learner, units) if units else learner

    # The classic layout spends its first layer on bringing x and y together.
    steps = max(1, layers - 1) if layout == "classic" else layers
    references, tuned = learners.known(train, tuning, steps, shared, fit.seed)
    result.findings |= learners.report(seen, references, report) | {"references": tuned}
    if model is None:
        result.findings["ood"] = learners.ood({"learner": learner, "gd": references["gd"]}, report)
        if units:
            mixers.set_units(module, units)
        result.models = {"lsa": Model(module, kind="module")}
    result.predict = learners.with_numpy(learner)
    result.metrics, result.warnings = _metrics(result.findings)
    result.cost.seconds = time.monotonic() - began
    return result


def _metrics(findings: dict[str, Any]) -> tuple[dict[str, Metric], list[str]]:
    gd, zero, n = findings["alignment"]["gd"], findings["alignment"]["zero"], findings["tasks"]

    def metric(of: dict[str, float], better: Literal["higher", "lower"], text: str, before: float | None) -> Metric:
        return Metric(after=of["estimate"], before=before, n=n, ci=(of["low"], of["high"]), better=better, help=text)

    loss = metric(
        gd["loss"], "lower", "query loss on held-out tasks; before: answering 0", zero["reference_loss"]["estimate"]
    )
    cosine = metric(gd["cosine"], "higher", "sensitivities of the learner and of gradient descent", None)
    idle = zero["loss_gap"]["high"] >= 0
    text = "no better than answering 0 on held-out tasks; train longer, with more restarts, or --standardize"
    return {"loss": loss, "cosine_to_gd": cosine}, [text] if idle else []
