"""General-purpose in-context learning by meta-learning transformers (Kirsch et al. 2022)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge

from didact.bounds import BelowOne, Count, Share
from didact.evaluate import classify, classify_pictures, in_context
from didact.evaluate.phases import PhaseMap, mapped, untrained
from didact.infer import embed
from didact.learn import episodes, task_pools
from didact.models import sequence
from didact.models.model import Model
from didact.models.sequence import SequenceConfig
from didact.registry import method
from didact.types import Example, Fit, Result


@method(
    "gpicl",
    paper="General-Purpose In-Context Learning by Meta-Learning Transformers",
    year=2022,
    source="arXiv:2212.04458",
    gives=("models", "predict", "findings"),
    capabilities=("hidden",),
    presets={
        "lstm": {"learner.mixer": "lstm", "learner.layers": 1},
        "vsml": {"learner.mixer": "vsml", "learner.width": 16},
        "fast-weights": {"learner.mixer": "fast-weights"},
        "biased": {"bias": 0.9, "curriculum": 0.5},
        "phases": {"phases.widths": (32, 64, 128), "phases.tasks": (1, 16, 256, 4096, 0)},
        "states": {"phases.mixers": ("transformer", "lstm", "gru", "fast-weights"), "phases.widths": (32, 64, 128)},
    },
)
def gpicl(
    datasets: Sequence[Example],
    new: Sequence[Example] = (),
    model: Model | None = None,
    *,
    learner: SequenceConfig = SequenceConfig(),
    tasks: Annotated[int, Ge(0)] = 0,
    slots: Annotated[int, Ge(2)] = 10,
    length: Annotated[int, Ge(4)] = 100,
    bias: BelowOne = 0.5,
    curriculum: Share = 0.0,
    natural: Share = 0.0,
    features: Count = 64,
    held_out: BelowOne = 0.2,
    sequences: Annotated[int, Ge(2)] = 500,
    phases: PhaseMap = PhaseMap(),
    fit: Fit = Fit(lr=2e-4, steps=20_000, rows=128, schedule="cosine", warmup_steps=400, clip=1.0),
) -> Result:
    """Meta-train a classifier that learns new classes from examples in its context, without a gradient step.

    Labelled data become very many tasks: a random linear map of the inputs and a random label for every class,

        x_t = A x_bar_t,   y_t = rho(y_bar_t),   A_ij ~ N(0, 1/d),
        loss = - mean over tasks and all positions t of log p(y_t | x_1..t, y_1..t-1),

    read by a causal sequence model as tokens (x_t, y_t-1). Few tasks are memorised or identified; with enough of them
    the model learns to learn. The report tells which, on training tasks, fresh tasks and new data sets, compared with
    neighbours, centroids, logistic regression and networks trained by gradient steps on the same rows, an untrained
    copy and random labels.

    Args:
        datasets: base data: rows `x` (numbers, or texts) with classes `y`; records of one `task` are one data set.
        new: data sets kept out of training, to test on as well.
        model: model whose frozen hidden states represent texts (their means, whitened).
        learner: architecture of the sequence model.
        tasks: number of different training tasks; 0 draws fresh ones without end.
        slots: number of labels; of a data set with more classes each task takes as many.
        length: rows per sequence.
        bias: share of every batch whose classes keep their labels, which shortens the plateau of the loss.
        curriculum: share of training over which the bias falls to 0; at 0 it stays.
        natural: share of every batch whose inputs are not mapped: better on these data, less general.
        features: maximum number of columns; if there are more, principal components of the training rows.
        held_out: share of the rows of every class kept for the report, by a hash of their content.
        sequences: sequences per pool in the report.
        phases: further trainings, over sizes, numbers of tasks and architectures: the map of what is learned where.
        fit: training. The loss can stay at its plateau for thousands of steps: do not stop it early.

    Returns:
        `models["learner"]`; `predict(x (N, d), y (N,), query (M, d))` or with texts; findings.

    Raises:
        UserError: rows and classes that do not fit, NaN, texts without a model; or a leak: higher accuracy than
            possible.
    """
    start_time = time.monotonic()
    encode = None if model is None else lambda texts: embed.embed(model, texts).double().numpy()
    data = classify.prepared(datasets, new, encode, held_out, features)
    pool = task_pools.TaskPool(data.train, length, slots, tasks, fit.seed)
    pools = data.pools(pool)
    shape = {"raw": len(data.reduction.mean), **dataclasses.asdict(learner)}

    def build(**changes: Any) -> sequence.SequenceLearner:
        return sequence.SequenceLearner(data.width, slots, **{**shape, **changes})

    def law(tasks: task_pools.TaskPool, steps: int) -> episodes.Sampler:
        return task_pools.law(tasks, bias, natural, curriculum * steps)

    steps = fit.total_steps(0)
    plateau = in_context.Plateau(pools["unseen"], fit.seed, steps)
    run = episodes.meta_train(build, law(pool, steps), fit, loss=task_pools.class_loss, hooks=(plateau,))[0]
    module: Any = run.module
    report = in_context.examine(module, untrained(build, fit.seed), pools, sequences, fit.seed)
    result = Result(history=run.history, findings=report.findings)
    result.findings |= {
        "regime": report.regime,
        "chance": report.chance,
        "plateau_exit_step": plateau.left,
        "parameters": sum(p.numel() for p in module.parameters()),
        "state_size": module.state_size(length),
        "training_loss": run.training_loss,
        "map": mapped(phases, build, law, pools, pool, fit, sequences),
    }
    sequence.set_units(module, mean=data.reduction.mean, basis=data.reduction.basis)
    result.models = {"learner": Model(module, kind="module")}
    result.predict = classify.predictor(module, encode, length)
    result.metrics, result.warnings = classify.metrics(report, sequences)
    result.figures = classify_pictures.pictures(result.findings, report.chance)
    result.cost.tokens = 3 * len(run.history) * fit.rows * length
    result.cost.seconds = time.monotonic() - start_time
    return result
