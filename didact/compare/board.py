"""The leaderboard: arms by the primary measure, with intervals over seeds (of models that are only scored, over
records) and paired differences."""

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

    Of models that are only scored the seeds say nothing: their differences are those over records, each with the
    others of its group (its prompt, by default). `reference` is the untouched model, or the first of such models.

    An arm is tied with the leader unless the paired interval of their difference excludes 0. Beside every paired
    interval stand the p-value of its t test and that value corrected for the number of arms (Holm).
    """
    meaning = {k: v for done in units.values() for k, v in done[0].get("meaning", {}).items()}
    sign = -1.0 if (meaning.get(primary) or {}).get("better") == "lower" else 1.0
    scores = {name: [float(u["metrics"][primary]) for u in done] for name, done in units.items()}
    order = sorted(scores, key=lambda name: -sign * sum(scores[name]))
    rules = _rules(setting)
    pairs = _Pairs(scores, _values(units), _groups(setting))
    to_leader, to_untouched = _against(pairs, order[0]), _against(pairs, reference)
    to_rules = {
        rule: {n: _interval(statistics.paired_interval(v, values)) for n, v in scores.items()}
        for rule, values in rules.items()
    }
    rows = []
    for name in order:
        done, plan = units[name], chosen.get(name, {})
        whole = [u for u in done if not u.get("resumed")] or done
        metrics = {m: [u["metrics"][m] for u in done if m in u["metrics"]] for m in done[0]["metrics"]}
        samples = done[0].get("samples", [])
        rows.append(
            {
                "arm": name,
                "score": _interval(pairs.score(name, setting.whole)),
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
    """Differences of arms: over records, each with its group, of two models that were only scored; else over seeds.

    `values` are such models' numbers, one a record of every test, and `groups` whose the records are.
    """

    scores: Mapping[str, Sequence[float]]
    values: Mapping[str, Sequence[float]]
    groups: Sequence[str]

    def score(self, name: str, whole: bool) -> statistics.Interval:
        """An arm's own score; over records where all arms are such models."""
        if whole and self.known(name):
            return statistics.record_interval(self.values[name], self.groups)
        return statistics.mean_interval(self.scores[name])

    def difference(self, name: str, other: str) -> tuple[statistics.Interval, float]:
        """`name` less `other`: its interval, and the p-value of none."""
        if self.known(name) and self.known(other):
            return statistics.record_difference(self.values[name], self.values[other], self.groups)
        a, b = self.scores[name], self.scores[other]
        return statistics.paired_interval(a, b), statistics.paired_p(a, b)

    def known(self, name: str) -> bool:
        """Whether a model was only scored, by a number a record."""
        return bool(self.groups) and len(self.values.get(name, ())) == len(self.groups)


def _against(pairs: _Pairs, other: str) -> dict[str, dict[str, float]]:
    """Of every arm the paired interval of its difference to `other`, `p`, and `holm`, which leaves out `other`."""
    found = {name: pairs.difference(name, other) for name in pairs.scores}
    p = {name: p for name, (_, p) in found.items() if name != other}
    holm = dict(zip(p, statistics.holm(list(p.values())), strict=True))
    return {
        name: _interval(interval) | ({"p": p[name], "holm": holm[name]} if name in p else {})
        for name, (interval, _) in found.items()
    }


def _values(units: Mapping[str, Sequence[Outcome]]) -> dict[str, list[float]]:
    """Of models that were only scored every record's number, test after test."""
    return {name: [v for u in done for v in u["values"]] for name, done in units.items() if "values" in done[0]}


def _groups(setting: Setting) -> list[str]:
    """Whose the records of all tests are, test after test."""
    used, out = protocols.named(setting.protocol), []
    for _, part in setting.tests:
        rows = used.of(used.records(setting.split(part).test))
        named = setting.group if all(setting.group in as_row(r) for r in rows) else None
        out += splits.keys(rows, named)
    return out


def _warnings(protocol: str, units: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """What the protocol and the answers warn of, with the arms it is said of where it is not said of all."""

    def means(name: str) -> dict[str, float]:
        found = {m: [u["metrics"][m] for u in units[name] if m in u["metrics"]] for m in units[name][0]["metrics"]}
        return {m: sum(values) / len(values) for m, values in found.items()}

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
    """What rules score on the records every seed is tested on; nothing where no seed is."""
    if setting.whole:
        return {}
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
