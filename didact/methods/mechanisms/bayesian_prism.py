"""In-context learning through the Bayesian prism (Panwar et al. 2024)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge

from didact.bounds import Count, Positive, Whole
from didact.evaluate import prism_report, stream_report
from didact.learn import episodes, function_laws
from didact.learn.function_laws import FunctionConfig
from didact.models.model import Model
from didact.models.sequence import SequenceConfig, SequenceLearner
from didact.registry import method
from didact.types import Example, Fit, Result, UserError

SMALL = {"learner.layers": 3, "learner.heads": 2, "learner.width": 64}


@method(
    "bayesian-prism",
    paper="In-Context Learning through the Bayesian Prism",
    year=2024,
    source="openreview:HX5ujdsSon",
    gives=("models", "predict", "findings"),
    capabilities=("logits",),
    presets={
        "tiny": SMALL,
        "two-means": {"functions.names": ("two-means",), "functions.dim": 10},
        "diversity": {
            "functions.names": ("pool",), "functions.dim": 8, "functions.rows": 16, "functions.noise": 0.5, "looks": 20,
            "fit.lr": 1e-3,
        },
        "fourier": {"functions.names": ("fourier",)},
        "fourier-low": {"functions.names": ("fourier-low",)},
        "fourier-high": {"functions.names": ("fourier-high",)},
        "monomials": {"functions.names": ("monomials",), "functions.tasks": 100, "looks": 20},
        "official": {"functions.per_batch": True, "functions.curriculum": 2000},
    },
)  # fmt: skip
def bayesian_prism(
    tasks: Sequence[Example] = (),
    model: Model | None = None,
    *,
    functions: FunctionConfig = FunctionConfig(),
    learner: SequenceConfig = SequenceConfig(layers=12, layout="interleaved", positions="none"),
    prior: Positive = 1.0,
    prompts: Annotated[int, Ge(2)] = 1280,
    weights_after: Whole = 0,
    looks: Whole = 0,
    restarts: Count = 1,
    fit: Fit = Fit(lr=1e-4, steps=500_000, rows=64, schedule="cosine", warmup_steps=2000, clip=1.0),
) -> Result:
    """Test whether in-context learning is Bayesian inference under the training mixture.

    Without a model a causal transformer is trained on prompts x_1, f(x_1), x_2, ... with f drawn from function classes,
    on the mean over all positions of `(prediction - y)^2`. The best predictor is the posterior mean, for a mixture

        sum_k beta_k E_k[f(x) | prompt],    beta_k ~ alpha_k p_k(labels so far),

    exact where there is a closed form. The report has, by position, the learner's distance from it, from each
    component, ridge, least squares and others; the excess over the exact loss (the run stops if it is negative); the
    weights it implies, the class it recognises, its spectrum, and prompts from outside the mixture.

    With a language model and `tasks` nothing is trained: its distribution over labels is compared with the
    Dirichlet-categorical of the previous labels (prompts without inputs), or with the mixture of one specialist per
    task.

    Args:
        tasks: prompts: labels `y`, an input `x` for each or for none, and the name of their `task`.
        model: a causal language model to examine on them; or a learner that this method trained and saved, to examine
            on `functions`.
        functions: function classes to learn in context.
        learner: architecture of the sequence model.
        prior: pseudo-count of every label in the Dirichlet-categorical.
        prompts: number of prompts in the report, never seen in training.
        weights_after: rows after which implied weights are read; 0 is half of a prompt.
        looks: number of evaluations during training, on prompts from inside and outside the mixture.
        restarts: trainings from different weights; the one with the lowest TRAINING loss is kept.
        fit: training.

    Returns:
        `models["learner"]` and `predict(x (N, d), y (N,), query (M, d))` where one is trained; findings.

    Raises:
        UserError: tasks without a model, labels of several tokens, incompatible function classes; or a loss below the
            exact floor.
    """
    start_time = time.monotonic()
    if tasks or (model is not None and model.kind != "module"):
        if model is None or model.kind == "module" or not tasks:
            raise UserError("tasks and a language model go together: give --tasks and --model, or neither to train one")
        result = stream_report.examine(model, tasks, prior)
        result.cost.seconds = time.monotonic() - start_time
        return result
    law = function_laws.law(functions, fit.seed)
    outside = function_laws.elsewhere(functions, fit.seed)
    watch = prism_report.Watch(law, outside, fit.seed, fit.total_steps(0), looks)
    result = Result()
    if model is None:
        shape = vars(learner)

        def build() -> SequenceLearner:
            return SequenceLearner(law.dim, 1, **shape)

        sampler = function_laws.training_sampler(functions, law)
        runs = episodes.meta_train(build, sampler, fit, restarts, loss=prism_report.LOSS, hooks=watch.hooks)
        module: Any = runs[0].module
        result.history = runs[0].history
        result.findings["training_loss"] = [run.training_loss for run in runs]
        result.models = {"learner": Model(module, kind="module")}
        result.cost.tokens = 6 * restarts * len(result.history) * fit.rows * law.rows
    else:
        module = prism_report.checked(model.module, law)
    result.findings |= prism_report.examine(module, law, outside, prompts, weights_after, fit.seed)
    result.findings["looks"] = watch.rows
    result.predict = prism_report.predictor(module)
    result.metrics, result.warnings = prism_report.metrics(result.findings, prompts)
    result.figures = prism_report.pictures(result.findings)
    result.cost.seconds = time.monotonic() - start_time
    return result
