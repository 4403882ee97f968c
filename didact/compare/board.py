"""The leaderboard: arms by the primary measure, with intervals over seeds and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from didact.compare import score
from didact.compare.work import TUNING_SEED, UNTOUCHED, Setting
from didact.data import words
from didact.evaluate import protocols, statistics
from didact.evaluate.protocols import collapse
from didact.types import Metric

SHOWN = 4  # sample answers of an arm

Outcome = Mapping[str, Any]


def leaderboard(
    setting: Setting,
    primary: str,
    units: Mapping[str, Sequence[Outcome]],
    chosen: Mapping[str, Outcome],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """Rows by the primary measure, with t intervals over seeds, paired with the leader, the untouched model and rules.

    An arm is tied with the leader unless the paired interval of their difference excludes 0. Beside every paired
    interval stand the p-value of its t test and that value corrected for the number of arms (Holm).
    """
    meaning = {k: v for done in units.values() for k, v in done[0].get("meaning", {}).items()}
    sign = -1.0 if (meaning.get(primary) or {}).get("better") == "lower" else 1.0
    scores = {name: [float(u["metrics"][primary]) for u in done] for name, done in units.items()}
    order = sorted(scores, key=lambda name: -sign * sum(scores[name]))
    rules = _rules(setting)
    to_leader = _against(scores, scores[order[0]], order[0])
    to_untouched = _against(scores, scores[UNTOUCHED], UNTOUCHED)
    to_rules = {rule: _against(scores, values) for rule, values in rules.items()}
    rows = []
    for name in order:
        done, plan = units[name], chosen.get(name, {})
        whole = [u for u in done if not u.get("resumed")] or done
        metrics = {m: [u["metrics"][m] for u in done if m in u["metrics"]] for m in done[0]["metrics"]}
        samples = done[0].get("samples", [])
        rows.append(
            {
                "arm": name,
                "score": _interval(statistics.mean_interval(scores[name])),
                "to_leader": to_leader[name],
                "to_untouched": to_untouched[name],
                "to_rules": {rule: found[name] for rule, found in to_rules.items()},
                "tied": not (to_leader[name]["high"] < 0 or to_leader[name]["low"] > 0),
                "metrics": {m: _interval(statistics.mean_interval(v)) for m, v in metrics.items()},
                "cost": {k: sum(u["cost"][k] for u in whole) / len(whole) for k in ("tokens", "flops", "seconds")},
                "lr": plan.get("lr"),
                "steps": plan.get("steps"),
                "search": plan.get("search", {}),
                "beyond": plan.get("beyond", 0),
                "per_seed": scores[name],
                "samples": _shown(samples),
                "answered": _answered(samples),
            }
        )
    return {
        "protocol": setting.protocol, "primary": primary, "better": "lower" if sign < 0 else "higher",
        "budget": {"amount": setting.budget.amount, "unit": setting.budget.unit}, "seeds": list(setting.seeds),
        "tuning_seed": TUNING_SEED, "rates": list(setting.rates),
        "adapter_rates": setting.adapter_rates, "folds": setting.folds, "rows": rows,
        "rules": {rule: sum(v) / len(v) for rule, v in rules.items()}, "failures": dict(failures),
        "judged": setting.judge is not None, "meaning": meaning, "warnings": _warnings(setting.protocol, units),
        "tuned_on_tested": setting.tuned_on_tested(),
    }  # fmt: skip


def _against(
    scores: Mapping[str, Sequence[float]], other: Sequence[float], itself: str = ""
) -> dict[str, dict[str, float]]:
    """Of every arm the paired interval of its difference to `other`, `p`, and `holm`, which leaves out `itself`."""
    p = {name: statistics.paired_p(values, other) for name, values in scores.items() if name != itself}
    holm = dict(zip(p, statistics.holm(list(p.values())), strict=True))
    return {
        name: _interval(statistics.paired_interval(values, other))
        | ({"p": p[name], "holm": holm[name]} if name in p else {})
        for name, values in scores.items()
    }


def _warnings(protocol: str, units: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """What the protocol and the answers warn of, with the arms it is said of where it is not said of all."""

    def means(name: str) -> dict[str, float]:
        return {m: sum(u["metrics"][m] for u in units[name]) / len(units[name]) for m in units[name][0]["metrics"]}

    start, said = means(UNTOUCHED), [s["answer"] for s in units[UNTOUCHED][0].get("samples", [])]
    told: dict[str, list[str]] = {}
    for name in units.keys() - {UNTOUCHED}:
        found = {m: Metric(after=v, before=start.get(m)) for m, v in means(name).items()}
        answers = [s["answer"] for s in units[name][0].get("samples", [])]
        for text in protocols.named(protocol).warns(found) + collapse.warns(said, answers):
            told.setdefault(text, []).append(name)
    return [
        text if len(arms) == len(units) - 1 else f"{', '.join(sorted(arms))}: {text}"
        for text, arms in sorted(told.items())
    ]


def _rules(setting: Setting) -> dict[str, list[float]]:
    """What rules score on the records every seed is tested on."""
    found = [score.rules(setting.protocol, setting.scoring(k, s, {})) for k, s in enumerate(setting.seeds)]
    return {rule: [values[rule] for values in found] for rule in found[0]}


def _shown(samples: Sequence[Outcome]) -> list[Outcome]:
    """A few of every part; they were drawn at random."""
    parts = {s["part"]: [o for o in samples if o["part"] == s["part"]] for s in samples}
    return [s for rows in parts.values() for s in rows[: max(1, SHOWN // len(parts))]]


def _answered(samples: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """By part, how many of the sampled answers are the right one to the letter, and of how many."""
    parts = {s["part"]: [o for o in samples if o["part"] == s["part"] and o["wanted"]] for s in samples}
    return {
        part: {"right": sum(words.key(o["answer"]) == words.key(o["wanted"]) for o in rows), "of": len(rows)}
        for part, rows in parts.items()
        if rows
    }


def _interval(found: statistics.Interval) -> dict[str, float]:
    return {"mean": found.estimate, "low": found.low, "high": found.high}
