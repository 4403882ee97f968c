"""The claim of bayesian-prism: a learner trained on a mixture comes close to the mixture's posterior mean.

World A: `w ~ 1/2 N(+m, .25 I) + 1/2 N(-m, .25 I)`, |m| = 2, noise .5. World B: linear functions from a pool of four or
of 4,096: close to Bayes over the pool where it is small, to Bayes over all linear functions (ridge) where it is large.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from didact import mechanisms
from didact.claims import runner
from didact.claims.lab import bound, difference, equivalence, ratio
from didact.claims.mechanisms import bayesian_prism_sabotages as broken
from didact.claims.problem import Problem
from didact.data.streams import Tensors
from didact.evaluate import prism, prism_report
from didact.learn import function_laws
from didact.learn.function_laws import FunctionConfig
from didact.models.sequence import Mixer, SequenceConfig
from didact.types import Fit


@dataclasses.dataclass(frozen=True)
class Size:
    """A tier's sizes: dimension, rows, learner, training, prompts."""

    dim: int
    rows: int
    mixer: Mixer
    layers: int
    width: int
    heads: int
    lr: float
    steps: int
    prompts: int


# Chosen on seed 1000: the learning rate, 1e-2 over 2e-2. Quick has an LSTM because it trains in seconds.
SIZES = {
    "smoke": Size(2, 4, "lstm", 1, 16, 1, 1e-2, 20, 100),
    "quick": Size(4, 8, "lstm", 1, 64, 1, 1e-2, 800, 2_000),
    "full": Size(4, 8, "transformer", 3, 64, 4, 2e-3, 3_000, 2_000),
}
NOISE, FEW, MANY = 0.5, 4, 4096


def problem(seed: int) -> Problem:
    """The embedded example: two means in two dimensions, an LSTM. No data: the method draws its functions."""
    return Problem(
        options={
            "functions.names": ("two-means",), "functions.dim": 2, "functions.rows": 8, "functions.noise": NOISE,
            "functions.separation": 2.0, "functions.sharpness": 0.5, "functions.spread": 0.5, "prompts": 500,
            "learner.mixer": "lstm", "learner.layers": 1, "learner.width": 64, "learner.layout": "shifted",
        },
        fit={"lr": 1e-2, "steps": 400, "rows": 64, "warmup_steps": 20},
    )  # fmt: skip


def run(seed: int, tier: str, parts: Sequence[str] = ("mixture", "few", "many")) -> runner.Measured:
    """Train one learner on the mixture and one on each pool, and measure all on the same fresh prompts."""
    size = SIZES[tier]
    common: dict[str, Any] = {"dim": size.dim, "rows": size.rows, "noise": NOISE}
    mixture = FunctionConfig(names=("two-means",), separation=2.0, sharpness=0.5, spread=0.5, **common)
    pools = {"few": FEW, "many": MANY}
    out: dict[str, dict[str, float]] = {}
    if "mixture" in parts:
        out |= _mixture_arm(_train_learner(mixture, size, seed), mixture, size, seed)
    for name in [n for n in parts if n in pools]:
        config = FunctionConfig(names=("pool",), tasks=pools[name], **common)
        scores = _score(_train_learner(config, size, seed), config, size, seed)
        out[name] = {"to_pool": scores["Bayes"], "to_ridge": scores["ridge"], "excess": scores["excess"]}
    return out


def _train_learner(given: FunctionConfig, size: Size, seed: int) -> nn.Module:
    shape = SequenceConfig(
        mixer=size.mixer, layers=size.layers, width=size.width, heads=size.heads, layout="shifted", positions="rotary"
    )
    fit = Fit(
        lr=size.lr, steps=size.steps, rows=64, schedule="cosine", warmup_steps=size.steps // 20, betas=(0.9, 0.98),
        seed=seed,
    )  # fmt: skip
    result = mechanisms.bayesian_prism(functions=given, learner=shape, prompts=100, fit=fit)
    module: Any = result.models["learner"]
    return module.module


def _score(module: nn.Module, given: FunctionConfig, size: Size, seed: int) -> dict[str, float]:
    """Return losses and the distance to every reference; the floor is not checked here, but by the claim's own test."""
    law = function_laws.law(given, seed)
    batch: Tensors = law((seed, 0, prism_report.REPORT + 8), size.prompts)
    x, y = batch["x"].double(), batch["y"][..., 0].double()
    predictions = prism.predict(module, batch["x"], batch["y"])
    means = {name: f(x, y).mean for name, f in prism.reference_predictors(law).items()}
    out = {name: float((predictions - mean).square().mean()) for name, mean in means.items()}
    floor = (means["Bayes"] - y).square()
    excess = ((predictions - y).square() - floor).mean(1)
    return out | {
        "loss": float((predictions - y).square().mean()),
        "bayes_loss": float(floor.mean()),
        "ridge_loss": float((means["ridge"] - y).square().mean()),
        "excess": float(excess.mean()),
        "excess_in_errors": float(excess.mean() / (excess.std() / len(excess) ** 0.5)),
    }


def _mixture_arm(module: nn.Module, given: FunctionConfig, size: Size, seed: int) -> dict[str, dict[str, float]]:
    scores = _score(module, given, size, seed)
    law = function_laws.law(given, seed)
    batch: Tensors = law((seed, 0, prism_report.REPORT + 8), size.prompts)
    y = batch["y"][..., 0].double()
    posteriors = {name: f(batch["x"], y) for name, f in prism.reference_predictors(law).items()}
    slope = prism.recognition(prism.predict(module, batch["x"], batch["y"]), posteriors, batch)["slope"]
    return {
        "mixture": {
            "to_bayes": scores["Bayes"], "to_ridge": scores["ridge"],
            "to_nearest_part": min(scores["part 1"], scores["part 2"]),
            "to_least_squares": scores["least squares"], "loss": scores["loss"], "bayes_loss": scores["bayes_loss"],
            "excess": scores["excess"], "excess_in_errors": scores["excess_in_errors"],
            "ridge_excess": scores["ridge_loss"] - scores["bayes_loss"], "slope_after_one": slope[1],
        }
    }  # fmt: skip


NEAR, FLOOR = "nearer to Bayes than to ridge", "not below the exact floor"
ONE: dict[str, Any] = {"parts": ("mixture",)}
OFF = {"didact.evaluate.curves:check_floor": broken.unchecked}
CLAIM = runner.Claim(
    method="bayesian-prism",
    text=(
        "A learner trained on a mixture of two Gaussian classes of functions predicts as the mixture's posterior mean, "
        "not as either class, ridge regression or least squares; trained on four functions it predicts as Bayes for "
        "those four, on 4,096 as Bayes for all."
    ),
    run=run,
    tests=(
        ratio(NEAR, "mixture.to_bayes", "mixture.to_ridge", below=0.5),
        ratio("nearer to Bayes than to either class", "mixture.to_bayes", "mixture.to_nearest_part", below=1 / 3),
        ratio("loss above Bayes' against ridge's", "mixture.excess", "mixture.ridge_excess", below=0.8),
        bound(FLOOR, "mixture.excess_in_errors", -3.0, "standard errors"),
        equivalence("the implied weight of a class after one row is Bayes'", "mixture.slope_after_one", None, 0.2,
                    "slope", null=1.0),
        difference("four functions: nearer to their pool", "few.to_ridge", "few.to_pool", "squared"),
        difference("4,096 functions: nearer to ridge", "many.to_pool", "many.to_ridge", "squared", reported=True),
        ratio("excess, to a quarter of ridge's", "mixture.excess", "mixture.ridge_excess", below=0.25, reported=True),
    ),
    sabotages=(
        runner.Sabotage("targets not shifted", FLOOR, None,
                        OFF | {"didact.models.sequence:before": broken.unshifted}, ONE),
        runner.Sabotage("loss on the last position only", NEAR, None,
                        OFF | {"didact.evaluate.prism_report:LOSS": broken.last_only}, ONE),
        runner.Sabotage("the reference's weights do not learn", NEAR, None,
                        OFF | {"didact.evaluate.references.bayes:mixture": broken.unlearned}, ONE),
    ),
)  # fmt: skip
