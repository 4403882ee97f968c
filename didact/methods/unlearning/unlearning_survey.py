"""The unlearning survey as a benchmark: its methods side by side on one model and data, and the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from didact.evaluate import forgetting, statistics
from didact.methods.unlearning.eul import eul
from didact.methods.unlearning.ext_sub import ext_sub
from didact.methods.unlearning.kul import kul
from didact.methods.unlearning.llmu import llmu
from didact.methods.unlearning.negated_adapter import negated_adapter
from didact.methods.unlearning.npo import npo
from didact.methods.unlearning.survey import SURVEY
from didact.methods.unlearning.task_arithmetic import task_arithmetic
from didact.methods.unlearning.whp import whp
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Result, UserError

CONTROL = 0.2  # share of retain held out from every method and used to score them
Way = Callable[..., Result]


def _npo(**options: Any) -> Way:
    def run(model: Model, forget: Sequence[Demo], retain: Sequence[Demo], fit: Fit) -> Result:
        return npo(model, forget, retain, fit=fit, **options)

    return run


def _whp(model: Model, forget: Sequence[Demo], retain: Sequence[Demo], fit: Fit) -> Result:
    return whp(model, forget, retain, reinforce_lr=fit.lr, fit=fit)


def _as_way(function: Way) -> Way:
    def run(model: Model, forget: Sequence[Demo], retain: Sequence[Demo], fit: Fit) -> Result:
        return function(model, forget, retain, fit=fit)

    return run


def _ascent(model: Model, forget: Sequence[Demo], retain: Sequence[Demo], fit: Fit) -> Result:
    return kul(model, forget, n=5, fit=fit)  # without unseen records there is no stop rule


def _adapter(model: Model, forget: Sequence[Demo], retain: Sequence[Demo], fit: Fit) -> Result:
    return negated_adapter(model, forget, retain, fit=fit.replace(lora=fit.lora or 8))


WAYS: Mapping[str, tuple[str, Way]] = {
    "ga": ("optimisation", _npo(loss="ga", regulariser="none")),
    "graddiff": ("optimisation", _npo(loss="ga", regulariser="ce")),
    "ga-kl": ("optimisation", _npo(loss="ga", regulariser="kl")),
    "npo": ("optimisation", _npo(loss="npo", regulariser="ce", beta=1.0)),
    "kul": ("optimisation", _ascent),
    "llmu": ("optimisation", _as_way(llmu)),
    "eul": ("optimisation", _as_way(eul)),
    "whp": ("optimisation", _whp),
    "task-arithmetic": ("merging", _as_way(task_arithmetic)),
    "negated-adapter": ("merging", _adapter),
    "ext-sub": ("merging", _as_way(ext_sub)),
}


@method("unlearning-survey", **SURVEY, gives=("models", "findings"), protocol=("forget",))
def unlearning_survey(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    ways: tuple[str, ...] = ("graddiff", "npo", "whp", "task-arithmetic", "negated-adapter", "ext-sub"),
    fit: Fit = Fit(lr=1e-5, epochs=5, rows=16, schedule="constant"),
) -> Result:
    """Try several unlearning methods side by side and return the model of the best balance.

    The survey's classes: parameter optimisation (ga, graddiff, ga-kl, npo, kul, llmu, eul, whp) and parameter merging
    (task-arithmetic, negated-adapter, ext-sub). Each starts from the same model and gets the same `fit`; a fifth of
    retain is held out from all of them. Score, on it and on the forget set:

        balance = harmonic mean of 1 - extraction strength (forget) and token accuracy (held-out retain)

    The other methods have commands of their own: `unlearning-survey.kga` needs unseen records, `.depn` trains nothing,
    `.icul` and `.guardrail` only prompt the model (the survey's third class).

    Args:
        model: a causal model; left unchanged.
        forget: records whose completions must go.
        retain: records whose completions must stay.
        ways: methods to try.
        fit: how each trains, specialists of the merging class too.

    Returns:
        The best model; findings: one row per method.

    Raises:
        UserError: an unknown method; fewer than five retain records; every method failed.
    """
    unknown = [w for w in ways if w not in WAYS]
    if unknown or not ways:
        raise UserError(f"ways: {', '.join(unknown) or 'none'}: choose from {', '.join(WAYS)}")
    start_time = time.monotonic()
    train, control = _split(retain, fit.seed)
    rows: dict[str, dict[str, Any]] = {"untouched": judged(model, forget, control)}
    result = Result()
    best = -math.inf
    for name in ways:
        kind, way = WAYS[name]
        way_fit = fit.replace(folder=f"{fit.folder}/{name}" if fit.folder else None)
        try:
            run = way(model, forget, train, way_fit)
        except UserError as error:  # the other methods still run
            rows[name] = {"class": kind, "error": str(error)}
            continue
        trained: Any = run.models["model"]
        rows[name] = {"class": kind, **judged(trained, forget, control), "tokens": run.cost.tokens}
        result.cost.tokens += run.cost.tokens
        result.cost.flops += run.cost.flops
        if rows[name]["balance"] > best:
            best = rows[name]["balance"]
            result.models, result.history = {"model": trained}, run.history
            result.findings = {"best": name}
    if not result.models:
        raise UserError(f"every way failed: {rows[ways[0]]['error']}")
    result.findings |= {"ways": rows, "control": len(control)}
    result.cost.seconds = time.monotonic() - start_time
    return result


def judged(model: Model, forget: Sequence[Demo], control: Sequence[Demo]) -> dict[str, float]:
    """Score a model by the survey's measures on forget and control records."""
    on_forget, on_control = forgetting.answers(model, forget, "forget"), forgetting.answers(model, control, "retain")
    out = {
        "forget_extraction": float(on_forget["extraction"].mean()),
        "forget_accuracy": float(on_forget["accuracy"].mean()),
        "forget_probability": float(on_forget["probability"].mean()),
        "retain_accuracy": float(on_control["accuracy"].mean()),
    }
    balance = statistics.harmonic_mean([max(0.0, 1 - out["forget_extraction"]), out["retain_accuracy"]])
    return out | {"balance": balance}


def _split(retain: Sequence[Demo], seed: int) -> tuple[list[Demo], list[Demo]]:
    """Split into records to train on and records to score on."""
    size = round(CONTROL * len(retain))
    if size < 1 or len(retain) < 5:
        raise UserError(f"retain: {len(retain)} records are too few to keep some apart for judging: give 5 or more")
    order = np.random.default_rng([seed, 2311]).permutation(len(retain))
    return [retain[i] for i in sorted(order[size:])], [retain[i] for i in sorted(order[:size])]
