"""The leaderboard: arms ranked by the primary measure, with intervals over seeds (over records for arms that are only
scored, not trained) and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from didact.compare import score
from didact.compare.work import TUNING_SEED, UNTOUCHED, Setting
from didact.data import splits, words
from didact.evaluate import protocols, statistics
from didact.evaluate.protocols import collapse
from didact.types import Metric, as_row

SHOWN = 4  # sample answers of an arm

Outcome = Mapping[str, Any]


def leaderboard(
    setting: Setting,
    primary: str,
    units: Mapping[str, Sequence[Outcome]],
    chosen: Mapping[str, Outcome],
    failures: Mapping[str, str],
    reference: str = UNTOUCHED,
) -> dict[str, Any]:
    """Rows by the primary measure, with t intervals over seeds, paired with the leader, the untouched model and rules.

    Models that are only scored do not vary with the seed: their differences are over records, clustered by group (the
    prompt, by default). `reference` is the untouched model, or the first of such models.

    An arm is tied with the leader unless the paired interval of their difference excludes 0. Each paired interval
    comes with the p-value of its t test and that value corrected for the number of arms (Holm).
    """
    meaning = {k: v for outcomes in units.values() for k, v in outcomes[0].get("meaning", {}).items()}
    sign = -1.0 if (meaning.get(primary) or {}).get("better") == "lower" else 1.0
    scores = {name: [float(u["metrics"][primary]) for u in outcomes] for name, outcomes in units.items()}
    order = sorted(scores, key=lambda name: -sign * sum(scores[name]))
    rules = _rules(setting)
    pairs = _Pairs(scores, _values(units), _record_groups(setting))
    to_leader, to_untouched = _differences(pairs, order[0]), _differences(pairs, reference)
    to_rules = {
        rule: {n: _interval(statistics.paired_interval(v, values)) for n, v in scores.items()}
        for rule, values in rules.items()
    }
    rows = []
    for name in order:
        outcomes, plan = units[name], chosen.get(name, {})
        complete = [u for u in outcomes if not u.get("resumed")] or outcomes
        metrics = {m: [u["metrics"][m] for u in outcomes if m in u["metrics"]] for m in outcomes[0]["metrics"]}
        samples = outcomes[0].get("samples", [])
        rows.append(
            {
                "arm": name,
                "score": _interval(pairs.score(name, setting.whole)),
                "to_leader": to_leader[name],
                "to_untouched": to_untouched[name],
                "to_rules": {rule: intervals[name] for rule, intervals in to_rules.items()},
                "tied": not (to_leader[name]["high"] < 0 or to_leader[name]["low"] > 0),
                "metrics": {m: _interval(statistics.mean_interval(v)) for m, v in metrics.items()},
                "cost": {
                    k: sum(u["cost"][k] for u in complete) / len(complete) for k in ("tokens", "flops", "seconds")
                },
                "lr": plan.get("lr"),
                "steps": plan.get("steps"),
                "search": plan.get("search", {}),
                "beyond": plan.get("beyond", 0),
                "per_seed": scores[name],
                "samples": _sample_rows(samples),
                "answered": _exact_answers(samples),
            }
        )
    return {
        "protocol": setting.protocol, "primary": primary, "better": "lower" if sign < 0 else "higher",
        "budget": None if setting.whole else {"amount": setting.budget.amount, "unit": setting.budget.unit},
        "over": "records" if setting.whole else "seeds", "groups": len(set(pairs.groups)), "reference": reference,
        "seeds": [seed for seed, _ in setting.tests],
        "tuning_seed": TUNING_SEED, "rates": list(setting.rates),
        "adapter_rates": setting.adapter_rates, "folds": setting.folds, "rows": rows,
        "rules": {rule: sum(v) / len(v) for rule, v in rules.items()}, "failures": dict(failures),
        "judged": setting.judge is not None, "meaning": meaning, "tuned_on_tested": setting.tuned_on_tested(),
        "warnings": [] if setting.whole else _warnings(setting.protocol, units),
    }  # fmt: skip


@dataclass(frozen=True)
class _Pairs:
    """Differences between arms: over records, clustered by group, if both were only scored; else over seeds.

    `values` has such a model's score of each record of all tests, `groups` the records' groups.
    """

    scores: Mapping[str, Sequence[float]]
    values: Mapping[str, Sequence[float]]
    groups: Sequence[str]

    def score(self, name: str, whole: bool) -> statistics.Interval:
        """An arm's own score: over records where all arms are only scored, else over seeds."""
        if whole and self.has_values(name):
            return statistics.record_interval(self.values[name], self.groups)
        return statistics.mean_interval(self.scores[name])

    def difference(self, name: str, other: str) -> tuple[statistics.Interval, float]:
        """`name` minus `other`: its interval, and the p-value of the hypothesis of no difference."""
        if self.has_values(name) and self.has_values(other):
            return statistics.record_difference(self.values[name], self.values[other], self.groups)
        a, b = self.scores[name], self.scores[other]
        return statistics.paired_interval(a, b), statistics.paired_p(a, b)

    def has_values(self, name: str) -> bool:
        """Whether a model was only scored, with one number per record."""
        return bool(self.groups) and len(self.values.get(name, ())) == len(self.groups)


def _differences(pairs: _Pairs, reference: str) -> dict[str, dict[str, float]]:
    """Each arm's paired interval of its difference to `reference`; for all but `reference` also `p` and `holm`."""
    differences = {name: pairs.difference(name, reference) for name in pairs.scores}
    p = {name: p for name, (_, p) in differences.items() if name != reference}
    holm = dict(zip(p, statistics.holm(list(p.values())), strict=True))
    return {
        name: _interval(interval) | ({"p": p[name], "holm": holm[name]} if name in p else {})
        for name, (interval, _) in differences.items()
    }


def _values(units: Mapping[str, Sequence[Outcome]]) -> dict[str, list[float]]:
    """Per-record scores of the models that were only scored, test after test."""
    return {
        name: [v for u in outcomes for v in u["values"]] for name, outcomes in units.items() if "values" in outcomes[0]
    }


def _record_groups(setting: Setting) -> list[str]:
    """The group of each record of all tests, test after test."""
    protocol, out = protocols.by_name(setting.protocol), []
    for _, part in setting.tests:
        rows = protocol.of(protocol.records(setting.split(part).test))
        group = setting.group if all(setting.group in as_row(r) for r in rows) else None
        out += splits.keys(rows, group)
    return out


def _warnings(protocol: str, units: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Warnings from the protocol and the sampled answers, naming the arms unless they apply to all."""

    def means(name: str) -> dict[str, float]:
        metrics = {m: [u["metrics"][m] for u in units[name] if m in u["metrics"]] for m in units[name][0]["metrics"]}
        return {m: sum(values) / len(values) for m, values in metrics.items()}

    start, start_answers = means(UNTOUCHED), [s["answer"] for s in units[UNTOUCHED][0].get("samples", [])]
    arms_by_text: dict[str, list[str]] = {}
    for name in units.keys() - {UNTOUCHED}:
        metrics = {m: Metric(after=v, before=start.get(m)) for m, v in means(name).items()}
        answers = [s["answer"] for s in units[name][0].get("samples", [])]
        for text in protocols.by_name(protocol).warns(metrics) + collapse.warns(start_answers, answers):
            arms_by_text.setdefault(text, []).append(name)
    return [
        text if len(arms) == len(units) - 1 else f"{', '.join(sorted(arms))}: {text}"
        for text, arms in sorted(arms_by_text.items())
    ]


def _rules(setting: Setting) -> dict[str, list[float]]:
    """Scores of the model-free rules on each seed's test records; empty where arms are scored on all records."""
    if setting.whole:
        return {}
    scores = [score.rules(setting.protocol, setting.scoring(k, s, {})) for k, s in enumerate(setting.seeds)]
    return {rule: [values[rule] for values in scores] for rule in scores[0]}


def _sample_rows(samples: Sequence[Outcome]) -> list[Outcome]:
    """A few samples of every part; they were drawn at random."""
    parts = {s["part"]: [o for o in samples if o["part"] == s["part"]] for s in samples}
    return [s for rows in parts.values() for s in rows[: max(1, SHOWN // len(parts))]]


def _exact_answers(samples: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """By part, how many sampled answers match the reference answer exactly, and of how many."""
    parts = {s["part"]: [o for o in samples if o["part"] == s["part"] and o["wanted"]] for s in samples}
    return {
        part: {"right": sum(words.key(o["answer"]) == words.key(o["wanted"]) for o in rows), "of": len(rows)}
        for part, rows in parts.items()
        if rows
    }


def _interval(interval: statistics.Interval) -> dict[str, float]:
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}
