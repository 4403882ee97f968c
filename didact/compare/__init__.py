"""Compare methods on one model and dataset: every arm gets the same start model, records, budget and rate search.

The untouched model is an arm. The learning rate is searched once, with a tuning seed and on records that no test uses,
beyond the grid while the best rate is at its edge; then every arm is trained from scratch with each test seed and
scored on held-out records. No code here is specific to a method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from didact.compare import score
from didact.compare.board import leaderboard
from didact.compare.work import TUNING_SEED, UNTOUCHED, Arm, FixedModel, Job, Setting, Unit, Work
from didact.evaluate import protocols
from didact.learn import rates
from didact.models.model import Model
from didact.types import UserError

__all__ = ["Arm", "FixedModel", "Job", "Setting", "check", "do", "plan", "rates_for", "run"]


def rates_for(model: Model, points: int = 3) -> list[float]:
    """A grid of learning rates, factors of 4 apart around 1e-5 sqrt(7e9 / weights), two digits each."""
    middle = rates.REFERENCE_LR * math.sqrt(rates.REFERENCE_WEIGHTS / max(model.parameters, 1))
    return [float(f"{middle * 4.0 ** (i - (points - 1) / 2):.1e}") for i in range(points)]


def check(arms: Sequence[Arm | FixedModel], setting: Setting) -> None:
    """Refuse a comparison that cannot run, before any work.

    Raises:
        UserError: the protocol cannot score these records or an arm, the records lack an arm's input, or a bad option.
    """
    protocol = protocols.by_name(setting.protocol)
    if protocol.primary is None or not protocol.records(setting.records):
        raise UserError(f"protocol '{setting.protocol}' cannot score {', '.join(setting.records)} records")
    if setting.folds < 0 or setting.folds == 1:
        raise UserError(f"folds = {setting.folds}: 0 (one split) or at least 2 are expected")
    if any(not rate > 0 for rate in setting.rates):
        raise UserError(f"learning rates {', '.join(f'{r:g}' for r in setting.rates)}: all must be above 0")
    if setting.beyond < 0 or not setting.adapter_rates > 0:
        raise UserError(f"beyond = {setting.beyond}, adapter_rates = {setting.adapter_rates}: 0 or more, and above 0")
    for arm in arms:
        if isinstance(arm, Arm):
            arm.inputs(setting.model, setting.records)
        if arm.predicts and protocol.answers is None:
            raise UserError(f"{arm.name} gives no model, so it cannot be scored by '{setting.protocol}'")
    for part in () if setting.whole else ("tune", *range(len(setting.seeds))):
        setting.split(part)


def plan(arms: Sequence[Arm | FixedModel], setting: Setting) -> dict[str, int]:
    """Count the units of each kind."""
    training, tests = sum(arm.trains for arm in arms), len(setting.tests)
    return {
        "untouched": tests * setting.untouched, "probes": training,
        "search": training * len(setting.rates) * (len(setting.rates) > 1),
        "test": len(arms) * tests,
    }  # fmt: skip


def run(
    arms: Sequence[Arm | FixedModel], setting: Setting, report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run the whole comparison; return the leaderboard, best arm first.

    Args:
        arms: the arms to compare; the untouched model is added where `setting` says so.
        setting: what all arms share.
        report: called with one line for every finished unit.
    """
    check(arms, setting)
    work, reference = _work(arms, setting, report), _reference(arms, setting)
    primary = work.primary
    baseline = work.all_of([Unit(reference, None, None, *test) for test in setting.tests])
    if unscored := [u["error"] for u in baseline if "error" in u]:
        label = "the untouched model" if setting.untouched else reference.name
        raise UserError(f"{label} cannot be scored: {unscored[0]}")
    lower = baseline[0].get("meaning", {}).get(primary, {}).get("better") == "lower"
    arms = [arm for arm in arms if arm is not reference]
    chosen = _search_rates(work, arms, -1.0 if lower else 1.0)
    runnable = [arm for arm in arms if "error" not in chosen[arm.name]]
    test_units = [
        Unit(arm, chosen[arm.name]["lr"], chosen[arm.name]["steps"], *test)
        for arm in runnable
        for test in setting.tests
    ]
    results = work.all_of(test_units)
    units: dict[str, list[dict[str, Any]]] = {reference.name: baseline}
    failures = {name: plan["error"] for name, plan in chosen.items() if "error" in plan}
    for arm in runnable:
        outcomes = [outcome for unit, outcome in zip(test_units, results, strict=True) if unit.arm is arm]
        if errors := [outcome["error"] for outcome in outcomes if "error" in outcome]:
            failures[arm.name] = errors[0]
        else:
            units[arm.name] = outcomes
    return leaderboard(setting, primary, units, chosen, failures, reference.name) | {"time": work.spent}


def do(arms: Sequence[Arm | FixedModel], setting: Setting, job: Job) -> dict[str, Any]:
    """Run one job of a comparison that another process leads; store its outcome and return it."""
    by_name = {arm.name: arm for arm in (_reference(arms, setting), *arms)}
    return _work(arms, setting, lambda _: None).do(job, by_name[job.arm])


def _work(arms: Sequence[Arm | FixedModel], setting: Setting, report: Callable[[str], None]) -> Work:
    answers, counts = any(arm.predicts for arm in arms), plan(arms, setting)
    primary = score.primary_of(setting.protocol, answers, setting.answer, setting.by_text, setting.metrics)
    return Work(setting, report, primary, sum(counts.values()) - counts["probes"])


def _reference(arms: Sequence[Arm | FixedModel], setting: Setting) -> Arm | FixedModel:
    """The arm that all others are compared with: the untouched model, else the first arm."""
    return FixedModel(name=UNTOUCHED, open=lambda: setting.model) if setting.untouched else arms[0]


def _search_rates(work: Work, arms: Sequence[Arm | FixedModel], sign: float) -> dict[str, dict[str, Any]]:
    """Return each arm's learning rate with the best tuning score and the steps its budget allows, or its error."""
    trained = [arm for arm in arms if isinstance(arm, Arm) and arm.trains]
    plans = dict(zip([arm.name for arm in trained], work.steps_of(trained), strict=True))
    runnable = [arm for arm in trained if "error" not in plans[arm.name]]
    results: dict[str, dict[float, dict[str, Any]]] = {arm.name: {} for arm in runnable}
    pending = {arm.name: rates for arm in runnable if len(rates := work.setting.rates_of(arm)) > 1}
    for _ in range(work.setting.beyond + 1):
        units = [
            Unit(arm, lr, plans[arm.name]["steps"], TUNING_SEED, "tune")
            for arm in runnable
            for lr in pending.get(arm.name, ())
        ]
        for unit, outcome in zip(units, work.all_of(units), strict=True):
            assert unit.lr is not None
            results[unit.arm.name][unit.lr] = outcome
        pending = {name: _next_rates(_scores(work, by_rate, sign)) for name, by_rate in results.items()}
        work.total += sum(map(len, pending.values()))
    work.total -= sum(map(len, pending.values()))  # these are beyond the last round and are not tried
    chosen: dict[str, dict[str, Any]] = {arm.name: {"lr": None, "steps": None, "search": {}} for arm in arms}
    chosen |= plans
    for arm in runnable:
        chosen[arm.name] = _best_rate(work, arm, plans[arm.name]["steps"], results[arm.name], sign)
    return chosen


def _scores(work: Work, outcomes: Mapping[float, Mapping[str, Any]], sign: float) -> dict[float, float | None]:
    """Tuning scores by rate, higher is better; None where training or scoring failed."""
    return {lr: None if "error" in u else sign * u["metrics"][work.primary] for lr, u in sorted(outcomes.items())}


def _next_rates(scores: Mapping[float, float | None]) -> list[float]:
    """The next rate to try if the best score is at the smallest or largest rate and no other rate ties with it."""
    rates, valid = list(scores), [v for v in scores.values() if v is not None]
    if len(rates) < 2 or not valid or valid.count(max(valid)) > 1:
        return []
    if scores[rates[0]] == max(valid):
        return [float(f"{rates[0] * rates[0] / rates[1]:.2g}")]
    return [float(f"{rates[-1] * rates[-1] / rates[-2]:.2g}")] if scores[rates[-1]] == max(valid) else []


def _best_rate(
    work: Work, arm: Arm, steps: int, outcomes: Mapping[float, Mapping[str, Any]], sign: float
) -> dict[str, Any]:
    """The rate with the best tuning score; the only rate of the grid if none was tried."""
    if not outcomes:
        return {"lr": work.setting.rates_of(arm)[0], "steps": steps, "search": {}}
    scores = _scores(work, outcomes, sign)
    valid = {lr: v for lr, v in scores.items() if v is not None}
    if not valid:
        return {"error": next(u["error"] for u in outcomes.values())}
    rates = work.setting.rates_of(arm)
    middle = math.log(rates[len(rates) // 2])
    best = max(valid, key=lambda lr: (valid[lr], -abs(math.log(lr) - middle)))  # ties: nearest the grid's middle
    search = {f"{lr:g}": None if v is None else sign * v for lr, v in scores.items()}
    return {"lr": best, "steps": steps, "search": search, "beyond": len(outcomes) - len(rates)}
