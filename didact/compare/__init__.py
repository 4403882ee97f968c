"""Which method helps on this model and this data: same start, same records, same budget, same search for every arm.

The untouched model is an arm. One learning-rate search on a tuning seed and on records no test sees, which goes beyond
its grid while the best rate is at an edge; then every arm is trained anew with each test seed and scored on records no
training saw. Nothing here knows a single method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from didact.compare import score
from didact.compare.board import leaderboard
from didact.compare.work import TUNING_SEED, UNTOUCHED, Arm, Given, Job, Setting, Unit, Work
from didact.evaluate import protocols
from didact.learn import rates
from didact.models.model import Model
from didact.types import UserError

__all__ = ["Arm", "Given", "Job", "Setting", "check", "do", "plan", "rates_for", "run"]


def rates_for(model: Model, points: int = 3) -> list[float]:
    """A grid of learning rates, factors of 4 apart around 1e-5 sqrt(7e9 / weights), two digits each."""
    middle = rates.REFERENCE_LR * math.sqrt(rates.REFERENCE_WEIGHTS / max(model.parameters, 1))
    return [float(f"{middle * 4.0 ** (i - (points - 1) / 2):.1e}") for i in range(points)]


def check(arms: Sequence[Arm | Given], setting: Setting) -> None:
    """Refuse what cannot run, before any work.

    Raises:
        UserError: records the protocol cannot score, an arm these records do not serve or it cannot score, a bad grid.
    """
    used = protocols.named(setting.protocol)
    if used.primary is None or not used.records(setting.records):
        raise UserError(f"protocol '{setting.protocol}' cannot score {', '.join(setting.records)} records")
    if setting.folds < 0 or setting.folds == 1:
        raise UserError(f"folds = {setting.folds}: 0 (one split) or at least 2 are expected")
    if any(not rate > 0 for rate in setting.rates):
        raise UserError(f"learning rates {', '.join(f'{r:g}' for r in setting.rates)}: all must be above 0")
    if setting.beyond < 0 or not setting.adapter_rates > 0:
        raise UserError(f"beyond = {setting.beyond} and adapter_rates = {setting.adapter_rates}: must not be negative")
    for arm in arms:
        if isinstance(arm, Arm):
            arm.inputs(setting.model, setting.records)
        if arm.predicts and used.answers is None:
            raise UserError(f"{arm.name} gives no model, so it cannot be scored by '{setting.protocol}'")
    for part in () if setting.whole else ("tune", *range(len(setting.seeds))):
        setting.split(part)


def plan(arms: Sequence[Arm | Given], setting: Setting) -> dict[str, int]:
    """How many units of each sort there will be."""
    trained, tests = sum(arm.trains for arm in arms), len(setting.tests)
    return {
        "untouched": tests * setting.untouched, "probes": trained,
        "search": trained * len(setting.rates) * (len(setting.rates) > 1),
        "test": len(arms) * tests,
    }  # fmt: skip


def run(
    arms: Sequence[Arm | Given], setting: Setting, report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The whole comparison; returns the leaderboard, best arm first.

    Args:
        arms: what to compare; the untouched model is added where `setting` says so.
        setting: what is the same for all.
        report: called with one line for every unit of work done.
    """
    check(arms, setting)
    work, reference = _work(arms, setting, report), _reference(arms, setting)
    primary = work.primary
    start = work.all_of([Unit(reference, None, None, *test) for test in setting.tests])
    if unscored := [u["error"] for u in start if "error" in u]:
        said = "the untouched model" if setting.untouched else reference.name
        raise UserError(f"{said} cannot be scored: {unscored[0]}")
    lower = start[0].get("meaning", {}).get(primary, {}).get("better") == "lower"
    arms = [arm for arm in arms if arm is not reference]
    chosen = _searched(work, arms, -1.0 if lower else 1.0)
    able = [arm for arm in arms if "error" not in chosen[arm.name]]
    wanted = [
        Unit(arm, chosen[arm.name]["lr"], chosen[arm.name]["steps"], *test) for arm in able for test in setting.tests
    ]
    done = work.all_of(wanted)
    units: dict[str, list[dict[str, Any]]] = {reference.name: start}
    failures = {name: plan["error"] for name, plan in chosen.items() if "error" in plan}
    for arm in able:
        outcomes = [outcome for unit, outcome in zip(wanted, done, strict=True) if unit.arm is arm]
        if wrong := [outcome["error"] for outcome in outcomes if "error" in outcome]:
            failures[arm.name] = wrong[0]
        else:
            units[arm.name] = outcomes
    return leaderboard(setting, primary, units, chosen, failures, reference.name) | {"time": work.spent}


def do(arms: Sequence[Arm | Given], setting: Setting, job: Job) -> dict[str, Any]:
    """One job of a comparison that another process leads; kept, and what came out of it."""
    named = {arm.name: arm for arm in (_reference(arms, setting), *arms)}
    return _work(arms, setting, lambda _: None).do(job, named[job.arm])


def _work(arms: Sequence[Arm | Given], setting: Setting, report: Callable[[str], None]) -> Work:
    answers, counts = any(arm.predicts for arm in arms), plan(arms, setting)
    primary = score.primary_of(setting.protocol, answers, setting.answer, setting.by_text, setting.metrics)
    return Work(setting, report, primary, sum(counts.values()) - counts["probes"])


def _reference(arms: Sequence[Arm | Given], setting: Setting) -> Arm | Given:
    """What all are read against: the untouched model, else the first of the models given."""
    return Given(name=UNTOUCHED, open=lambda: setting.model) if setting.untouched else arms[0]


def _searched(work: Work, arms: Sequence[Arm | Given], sign: float) -> dict[str, dict[str, Any]]:
    """For every arm the learning rate with the best tuning score and how many steps the budget allows, or its error."""
    trained = [arm for arm in arms if isinstance(arm, Arm) and arm.trains]
    plans = dict(zip([arm.name for arm in trained], work.steps_of(trained), strict=True))
    able = [arm for arm in trained if "error" not in plans[arm.name]]
    found: dict[str, dict[float, dict[str, Any]]] = {arm.name: {} for arm in able}
    waiting = {arm.name: rates for arm in able if len(rates := work.setting.rates_of(arm)) > 1}
    for _ in range(work.setting.beyond + 1):
        wanted = [
            Unit(arm, lr, plans[arm.name]["steps"], TUNING_SEED, "tune")
            for arm in able
            for lr in waiting.get(arm.name, ())
        ]
        for unit, outcome in zip(wanted, work.all_of(wanted), strict=True):
            assert unit.lr is not None
            found[unit.arm.name][unit.lr] = outcome
        waiting = {name: _beyond(_scores(work, tried, sign)) for name, tried in found.items()}
        work.total += sum(map(len, waiting.values()))
    work.total -= sum(map(len, waiting.values()))  # those that remain are not tried
    chosen: dict[str, dict[str, Any]] = {arm.name: {"lr": None, "steps": None, "search": {}} for arm in arms}
    chosen |= plans
    for arm in able:
        chosen[arm.name] = _best(work, arm, plans[arm.name]["steps"], found[arm.name], sign)
    return chosen


def _scores(work: Work, found: Mapping[float, Mapping[str, Any]], sign: float) -> dict[float, float | None]:
    """By rate, higher is better; none where it failed."""
    return {lr: None if "error" in u else sign * u["metrics"][work.primary] for lr, u in sorted(found.items())}


def _beyond(scores: Mapping[float, float | None]) -> list[float]:
    """The next rate, where the best of all is the smallest or the largest tried and no other did as well."""
    rates, good = list(scores), [v for v in scores.values() if v is not None]
    if len(rates) < 2 or not good or good.count(max(good)) > 1:
        return []
    if scores[rates[0]] == max(good):
        return [float(f"{rates[0] * rates[0] / rates[1]:.2g}")]
    return [float(f"{rates[-1] * rates[-1] / rates[-2]:.2g}")] if scores[rates[-1]] == max(good) else []


def _best(work: Work, arm: Arm, steps: int, found: Mapping[float, Mapping[str, Any]], sign: float) -> dict[str, Any]:
    """The rate that scored best of those tried; the only one there is, without trying."""
    if not found:
        return {"lr": work.setting.rates_of(arm)[0], "steps": steps, "search": {}}
    scores = _scores(work, found, sign)
    good = {lr: v for lr, v in scores.items() if v is not None}
    if not good:
        return {"error": next(u["error"] for u in found.values())}
    rates = work.setting.rates_of(arm)
    middle = math.log(rates[len(rates) // 2])
    best = max(good, key=lambda lr: (good[lr], -abs(math.log(lr) - middle)))  # of equals, the one with room around it
    search = {f"{lr:g}": None if v is None else sign * v for lr, v in scores.items()}
    return {"lr": best, "steps": steps, "search": search, "beyond": len(found) - len(rates)}
