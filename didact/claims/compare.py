"""Which method helps on this model and this data: same start, same records, same budget, same search for every arm.

The untouched model is an arm. One learning-rate search on a tuning seed and on records no test sees;
then every arm is taught anew with each test seed and scored on records no training saw. A unit of work
(arm, learning rate, seed) is one JSON file, so a comparison that was stopped goes on where it was, and the same
command in a second shell shares the work; an arm that fails is told and leaves the others alone.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from didact import files
from didact.data import convert, splits
from didact.evaluate import collapse, forgetting, judges, protocols, statistics
from didact.evaluate.measures import Measure
from didact.infer import lm
from didact.models import cache, cost
from didact.models.model import Model
from didact.types import Fit, Record, Result, UserError

Measured = Literal["tokens", "flops", "seconds"]
Protocol = Literal["prefer", "answer", "forget", "text"]

Predict = Callable[[Sequence[str]], Sequence[str]]

UNTOUCHED = "untouched"
TUNING_SEED = 1000
PROBES = (2, 6)  # steps of the two short runs a budget is laid out by
DRAWN = 32  # prompts answered for judges and diagnostics
SHOWN = 4  # sample outputs kept
PRIMARY: Mapping[Protocol, str] = {"prefer": "preferred", "answer": "accuracy", "forget": "balance", "text": "nll"}
BY_ANSWERS: Mapping[Protocol, str] = {"answer": "exact_answer", "forget": "answer_balance"}  # where an arm has no model
REFERENCE_WEIGHTS, REFERENCE_LR = 7e9, 1e-5  # where the middle of the learning-rate grid is anchored


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with its options: one row of the leaderboard. `entry` is its line of the catalogue."""

    name: str
    entry: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Result]:
        """The method itself."""
        found: Callable[..., Result] = getattr(importlib.import_module(self.entry["module"]), self.entry["function"])
        return found

    @property
    def predicts(self) -> bool:
        """Whether it gives answers and no model."""
        return "models" not in self.entry["gives"]

    @property
    def trains(self) -> bool:
        """Whether it has a `fit`."""
        return bool(self.entry["fit"])


@dataclass(frozen=True)
class Budget:
    """What every arm may use up: tokens (once a forward pass, three times when trained), flops or seconds."""

    amount: float
    unit: Measured

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From `20M-tokens`, `1e15-flops`, `90-seconds`.

        Raises:
            UserError: it is none of these.
        """
        found = re.fullmatch(r"([\d.]+(?:e\d+)?)([kMGT]?)-(tokens|flops|seconds)", text)
        if not found or float(found[1]) <= 0:
            raise UserError(f"budget '{text}': a number and its unit are expected, as in 20M-tokens or 90-seconds")
        scale = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[found[2]]
        return cls(float(found[1]) * scale, cast(Measured, found[3]))

    def used(self, meter: cost.Meter) -> float:
        """What a meter says in this unit."""
        return float(getattr(meter, self.unit))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that is the same for every arm.

    Args:
        model: where every arm starts.
        records: by parameter name (`forget`, `retain`) or record kind (`preference`, `demo`, ...).
        protocol: how arms are scored.
        budget: what each may use.
        seeds: test seeds; the tuning seed is none of them.
        rates: learning rates each arm that trains is tuned over.
        folds: 0 has one split; else seed k is tested on fold k.
        group: a field whose equal values are kept on one side of a split; the prompt by default.
        gold: a model that never saw what must be forgotten.
        judge: says which of two answers is better.
        folder: where units and models are kept.
        keep: save the taught model of the first seed of every arm.
    """

    model: Model
    records: Mapping[str, Sequence[Record]]
    protocol: Protocol
    budget: Budget
    seeds: Sequence[int]
    rates: Sequence[float]
    folds: int = 0
    group: str | None = None
    gold: Model | None = None
    judge: judges.Judge | None = None
    folder: Path
    keep: bool = True

    @functools.cached_property
    def gold_ratios(self) -> Any:
        """The gold model's truth ratios of what must be forgotten; None where there is no such model, or no truth."""
        forget: Any = self.records.get("forget", ())
        if self.gold is None or not forget or not forgetting.has_truth(forget):
            return None
        return forgetting.truth_ratios(self.gold, forget)


@dataclass(frozen=True)
class Split:
    """Records to teach, and records to score that teaching does not see."""

    train: Mapping[str, Sequence[Record]]
    test: Mapping[str, Sequence[Record]]


def rates(model: Model, points: int = 3) -> list[float]:
    """A grid of learning rates, factors of 4 apart around 1e-5 sqrt(7e9 / weights), two digits each."""
    middle = REFERENCE_LR * math.sqrt(REFERENCE_WEIGHTS / max(model.parameters, 1))
    return [float(f"{middle * 4.0 ** (i - (points - 1) / 2):.1e}") for i in range(points)]


def protocol_for(records: Mapping[str, Sequence[Record]]) -> Protocol:
    """The protocol that fits what the user gave."""
    if "forget" in records:
        return "forget"
    if convert.serve("preference", records):
        return "prefer"
    return "answer" if convert.serve("demo", records) else "text"


def split(
    records: Mapping[str, Sequence[Record]], part: int | Literal["tune"], folds: int = 0, group: str | None = None
) -> Split:
    """Teaching and scoring records, by a hash of the prompt (or text): the same prompt is never on both sides.

    With `group`, a field of the records, neither is one of its values.

    A fifth is for tuning. Of the rest one in `folds` (a quarter, where there is one split) is the test of a
    seed; tuning teaches what the first seed teaches, and is scored on its own fifth. What must be
    forgotten is taught and scored whole.
    """
    parts = folds or 4
    train: dict[str, Sequence[Record]] = {}
    test: dict[str, Sequence[Record]] = {}
    for name, rows in records.items():
        if name == "forget":
            train[name] = test[name] = rows
            continue
        bins = splits.bins(splits.keys(rows, group, name), 5 * parts)
        fold = 0 if part == "tune" or not folds else part % folds
        scored = [(b < parts) if part == "tune" else (b >= parts and b % parts == fold) for b in bins]
        taught = [b >= parts and b % parts != fold for b in bins]
        train[name] = [r for r, t in zip(rows, taught, strict=True) if t]
        test[name] = [r for r, t in zip(rows, scored, strict=True) if t]
        if not train[name] or not test[name]:
            raise UserError(f"{name}: {len(rows)} records are too few to keep some apart for tuning and testing")
    return Split(train, test)


def run(arms: Sequence[Arm], setting: Setting, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The whole comparison; returns the leaderboard, best arm first.

    Args:
        arms: what to compare; the untouched model is added.
        setting: what is the same for all.
        told: hears one line for every unit of work done.
    """
    if not _fits(setting.protocol, setting.records):
        raise UserError(f"protocol '{setting.protocol}' cannot score {', '.join(setting.records)} records")
    if setting.folds < 0 or setting.folds == 1:
        raise UserError(f"folds = {setting.folds}: 0 (one split) or at least 2 are expected")
    if any(not rate > 0 for rate in setting.rates):
        raise UserError(f"learning rates {', '.join(f'{r:g}' for r in setting.rates)}: all must be above 0")
    work = Work(setting, told, primary_of(setting.protocol, arms))
    start = work.together([Unit(None, None, None, seed) for seed in setting.seeds])
    if unscored := [u["error"] for u in start if "error" in u]:
        raise UserError(f"the untouched model cannot be scored: {unscored[0]}")
    chosen = _searched(work, arms)
    able = [arm for arm in arms if "error" not in chosen[arm.name]]
    wanted = [Unit(a, chosen[a.name]["lr"], chosen[a.name]["steps"], s) for a in able for s in setting.seeds]
    done = work.together(wanted)
    units: dict[str, list[dict[str, Any]]] = {UNTOUCHED: start}
    failures = {name: plan["error"] for name, plan in chosen.items() if "error" in plan}
    for arm in able:
        mine = [told for unit, told in zip(wanted, done, strict=True) if unit.arm is arm]
        if wrong := [told["error"] for told in mine if "error" in told]:
            failures[arm.name] = wrong[0]
        else:
            units[arm.name] = mine
    return leaderboard(setting, work.primary, units, chosen, failures)


def primary_of(protocol: Protocol, arms: Sequence[Arm]) -> str:
    """The metric arms are ranked by: where one gives answers and no model, one of answers."""
    return (BY_ANSWERS if any(arm.predicts for arm in arms) else PRIMARY).get(protocol, PRIMARY[protocol])


def leaderboard(
    setting: Setting,
    primary: str,
    units: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """Rows by the primary metric, with t intervals over seeds, paired with the leader, the untouched model and rules.

    An arm is tied with the leader unless the paired interval of their difference excludes 0.
    """
    sign = -1.0 if primary == "nll" else 1.0
    score = {name: [float(u["metrics"][primary]) for u in done] for name, done in units.items()}
    order = sorted(score, key=lambda name: -sign * sum(score[name]))
    rules = _rules(setting)
    rows = []
    for name in order:
        done = units[name]
        whole = [u for u in done if not u.get("resumed")] or done
        metrics = {m: [u["metrics"][m] for u in done if m in u["metrics"]] for m in done[0]["metrics"]}
        to_leader = statistics.paired_interval(score[name], score[order[0]])
        to_start = statistics.paired_interval(score[name], score[UNTOUCHED])
        rows.append(
            {
                "arm": name,
                "score": _interval(statistics.mean_interval(score[name])),
                "to_leader": _interval(to_leader),
                "to_untouched": _interval(to_start),
                "to_rules": {r: _interval(statistics.paired_interval(score[name], v)) for r, v in rules.items()},
                "tied": not (to_leader.high < 0 or to_leader.low > 0),
                "metrics": {m: _interval(statistics.mean_interval(v)) for m, v in metrics.items()},
                "cost": {k: sum(u["cost"][k] for u in whole) / len(whole) for k in ("tokens", "flops", "seconds")},
                "lr": chosen.get(name, {}).get("lr"),
                "steps": chosen.get(name, {}).get("steps"),
                "search": chosen.get(name, {}).get("search", {}),
                "per_seed": score[name],
                "samples": done[0].get("samples", []),
            }
        )
    return {
        "protocol": setting.protocol, "primary": primary, "better": "lower" if sign < 0 else "higher",
        "budget": {"amount": setting.budget.amount, "unit": setting.budget.unit}, "seeds": list(setting.seeds),
        "tuning_seed": TUNING_SEED, "rates": list(setting.rates), "folds": setting.folds, "rows": rows,
        "rules": {rule: sum(v) / len(v) for rule, v in rules.items()}, "failures": dict(failures),
        "judged": setting.judge is not None,
        "meaning": {k: v for done in units.values() for k, v in done[0].get("meaning", {}).items()},
    }  # fmt: skip


class Unit(NamedTuple):
    """One training (or none, without an arm) and its scoring: by a test seed, or on the tuning records."""

    arm: Arm | None
    lr: float | None
    steps: int | None
    seed: int
    part: int | Literal["tune"] | None = None

    @property
    def name(self) -> str:
        """What its file is called, and what is told of it."""
        arm = self.arm.name if self.arm else UNTOUCHED
        return f"{arm}{_rate(self.lr)}_{'tune' if self.part == 'tune' else 'test'}{self.seed}"


class Work:
    """Units of work, each done once and kept; several processes may share them."""

    def __init__(self, setting: Setting, told: Callable[[str], None], primary: str) -> None:
        self.setting, self.told, self.primary = setting, told, primary
        self.units = setting.folder / "units"
        self.units.mkdir(parents=True, exist_ok=True)

    def place(self, name: str) -> Path:
        """The file of a unit, or of what else is found out once."""
        return self.units / f"{re.sub(r'[^A-Za-z0-9.+-]', '_', name)}.json"

    def together(self, wanted: Sequence[Unit]) -> list[dict[str, Any]]:
        """Units as they were found, in the order given; what another process is at is waited for."""
        return self.each([(unit.name, functools.partial(self.unit, unit)) for unit in wanted])

    def each(self, wanted: Sequence[tuple[str, Callable[[], dict[str, Any]]]]) -> list[dict[str, Any]]:
        """What the named pieces of work give; no two processes are at one of a name."""
        done: dict[int, dict[str, Any]] = {}
        while len(done) < len(wanted):
            before = len(done)
            for i, (name, work) in enumerate(wanted):
                if i in done:
                    continue
                with files.claimed(self.place(name)) as mine:
                    if mine:
                        done[i] = work()
            if len(done) == before:  # all that is left is in other hands
                time.sleep(1)
        return [done[i] for i in range(len(wanted))]

    def unit(self, unit: Unit) -> dict[str, Any]:
        """Teach and score one arm with one seed; from its file where that is there. Failures are kept too."""
        arm, lr, steps, seed, part = unit
        place = self.place(unit.name)
        files.sweep(self.units, place.name)
        if place.exists() and "error" not in (kept := files.read_json(place)):  # what failed is tried once more
            return dict(kept)
        where = self.setting.seeds.index(seed) if part is None else part
        parts = split(self.setting.records, cast(Any, where), self.setting.folds, self.setting.group)
        first = part is None and seed == self.setting.seeds[0]
        resumed = self._checkpoints(place.stem).exists()
        told = _attempt(lambda: self._done(arm, lr, steps, seed, parts, place.stem, first))
        told |= {"resumed": True} if resumed else {}  # its meter saw the last part only
        files.write_json(place, told)
        shutil.rmtree(self._checkpoints(place.stem), ignore_errors=True)
        shown = told.get("error") or f"{self.primary} {told['metrics'][self.primary]:.4f}"
        self.told(f"{unit.name}: {shown}")
        return told

    def taught(
        self, arm: Arm, lr: float | None, steps: int | None, seed: int, train: Mapping[str, Sequence[Record]], name: str
    ) -> tuple[Result, cost.Meter]:
        """Run the method on its share of the records, and meter it."""
        given: dict[str, Any] = {}
        for parameter, need in arm.entry["needs"].items():
            if need["kind"] == "model":
                given[parameter] = self.setting.model
                continue
            rows = train.get(parameter)
            if not rows and parameter in (need["kind"], f"{need['kind']}s"):  # `forget` is given by name only
                rows = convert.serve(need["kind"], train)
            if rows is None and need["required"]:
                raise UserError(f"{arm.name} needs {parameter} ({need['kind']}), which these records do not give")
            if rows is not None:
                given[parameter] = rows
        takes = inspect.signature(arm.function).parameters
        if arm.trains:
            changes = dict(arm.fit) | {"seed": seed, "folder": str(self._checkpoints(name))}
            changes |= ({"lr": lr} if lr is not None else {}) | ({"steps": steps} if steps is not None else {})
            default: Fit = takes["fit"].default
            given["fit"] = default.replace(**changes)
        elif "seed" in takes:
            given["seed"] = seed
        with cache.private(), cost.metered() as meter:  # every arm pays for its own references
            result = arm.function(**given, **arm.options)
        return result, meter

    def _done(
        self, arm: Arm | None, lr: float | None, steps: int | None, seed: int, parts: Split, name: str, first: bool
    ) -> dict[str, Any]:
        setting = self.setting
        used = {"tokens": 0.0, "flops": 0.0, "seconds": 0.0}
        taught: Model | Predict = setting.model
        answers: Predict | None = None
        if arm is not None:
            result, meter = self.taught(arm, lr, steps, seed, parts.train, name)
            used = {k: float(getattr(meter, k)) for k in used}
            kept = result.models.get("model")
            found = result.policy or kept or result.predict
            if not isinstance(found, Model) and (found is None or setting.protocol not in BY_ANSWERS):
                raise UserError(f"{arm.name} gives no model, so it cannot be scored by '{setting.protocol}'")
            taught, answers = cast("Model | Predict", found), result.predict
            if first and setting.keep and isinstance(kept, Model):
                with files.new_folder(setting.folder / "models" / re.sub(r"[^A-Za-z0-9.+-]", "_", arm.name)) as fresh:
                    kept.save(fresh)
        measures, samples = score(setting, taught, parts.test, seed, self.primary, answers)
        told: dict[str, Any] = {"metrics": {k: m.value for k, m in measures.items()}, "cost": used}
        if first:
            told["samples"] = samples
            told["meaning"] = {
                k: {"n": m.n, "unit": m.unit, "better": m.better, "help": m.help} for k, m in measures.items()
            }
        if not math.isfinite(told["metrics"][self.primary]):
            raise UserError(f"{self.primary} is not a number")
        return told

    def _checkpoints(self, name: str) -> Path:
        return self.setting.folder / "checkpoints" / name


def score(
    setting: Setting,
    model: Model | Predict,
    test: Mapping[str, Sequence[Record]],
    seed: int,
    primary: str,
    answers: Predict | None = None,
) -> tuple[dict[str, Measure], list[dict[str, str]]]:
    """Everything the leaderboard shows of one taught model (or of what answers in its place), and some answers.

    `answers` gives them where the model does not by itself: a reward model guides another.
    """
    start: Any = setting.model
    records: Any = test
    demos: Any = convert.serve("demo", records) if setting.protocol == "answer" else ()
    out: dict[str, Measure] = {}
    if not isinstance(model, Model):
        if setting.protocol == "forget":
            out, demos = protocols.told(model, records["forget"], records.get("retain")), records["forget"]
        else:
            out["exact_answer"] = protocols.exact(model, demos)
        some = [d.prompt for d in demos[:SHOWN]]
        return out, [{"prompt": p, "answer": a} for p, a in zip(some, model(some), strict=True)]
    if setting.protocol == "forget":
        out, prompts = _forgetting(setting, model, records), [r.prompt for r in records["forget"]]
        if primary == "answer_balance":
            out |= protocols.told(_greedy(model), records["forget"], records.get("retain"))
    elif setting.protocol == "prefer":
        pairs: Any = convert.serve("preference", records)
        out = protocols.prefer(model, pairs, start)
        if model.kind == "encoder":  # a reward model answers nothing
            return out, []
        out["preferred_alone"] = protocols.prefer(model, pairs)["preferred"]
        prompts = [p.prompt for p in pairs]
    elif setting.protocol == "answer":
        out, prompts = protocols.answer(model, demos), [d.prompt for d in demos]
        if primary == "exact_answer":
            out["exact_answer"] = protocols.exact(_greedy(model), demos)
    else:
        texts: Any = convert.serve("text", records)
        out, prompts = protocols.text(model, texts), [t.text[:40] for t in texts]
    some = list(dict.fromkeys(prompts))[:DRAWN]
    out |= collapse.collapse(model, start, some, seed)
    ours = list((answers or _greedy(model))(some))
    if setting.judge is not None:
        theirs = _greedy(start)(some)
        out["win_rate"] = judges.win_rate(setting.judge, some, ours, theirs)
    return out, [{"prompt": p, "answer": a} for p, a in zip(some[:SHOWN], ours[:SHOWN], strict=True)]


def _greedy(model: Model) -> Predict:
    return lambda prompts: [a[0] for a in lm.of(model).generate(prompts)]


def _forgetting(setting: Setting, model: Model, records: Any) -> dict[str, Measure]:
    """The forget protocol, and `balance`: one number that both a ruined and an untouched model lose by."""
    ratios = setting.gold_ratios
    out = protocols.forget(model, records["forget"], records.get("retain"), gold_ratios=ratios, rouge="none")
    gone = 1 - (out["ks"].value if ratios is not None else out["forget_extraction"].value)
    kept = out["utility"].value if "utility" in out else math.nan
    parts = [max(gone, 0.0)] + ([kept] if records.get("retain") else [])
    what = "1 - ks" if ratios is not None else "1 - forget_extraction"
    both = statistics.harmonic_mean(parts)
    return out | {"balance": Measure(both, len(records["forget"]), "higher", help=f"harmonic mean of {what}, utility")}


def _searched(work: Work, arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """For every arm the learning rate with the best tuning score and how many steps the budget allows, or its error."""
    rates = work.setting.rates
    trained = [arm for arm in arms if arm.trains]
    counted = work.each(
        [(f"{arm.name}_steps", functools.partial(_attempt, functools.partial(_steps, work, arm))) for arm in trained]
    )
    plans = dict(zip([arm.name for arm in trained], counted, strict=True))
    able = [arm for arm in trained if "error" not in plans[arm.name]]
    wanted = [Unit(arm, lr, plans[arm.name]["steps"], TUNING_SEED, "tune") for arm in able for lr in rates]
    told = work.together(wanted)
    chosen: dict[str, dict[str, Any]] = {arm.name: {"lr": None, "steps": None, "search": {}} for arm in arms}
    chosen |= plans
    for arm in able:
        found = {unit.lr: t for unit, t in zip(wanted, told, strict=True) if unit.arm is arm}
        chosen[arm.name] = _best(work, plans[arm.name]["steps"], cast("dict[float, dict[str, Any]]", found))
    return chosen


def _best(work: Work, steps: int, found: Mapping[float, Mapping[str, Any]]) -> dict[str, Any]:
    """The rate that scored best of those tried."""
    sign = -1.0 if work.primary == "nll" else 1.0
    good = {lr: sign * u["metrics"][work.primary] for lr, u in found.items() if "error" not in u}
    if not good:
        return {"error": next(u["error"] for u in found.values())}
    middle = math.log(work.setting.rates[len(work.setting.rates) // 2])
    best = max(good, key=lambda lr: (good[lr], -abs(math.log(lr) - middle)))  # of equals, the one with room around it
    return {"lr": best, "steps": steps, "search": {f"{lr:g}": sign * v for lr, v in good.items()}}


def _steps(work: Work, arm: Arm) -> dict[str, Any]:
    """Steps that use the budget up: cost is taken as a + b steps, from two short runs.

    `a` is what a method does once (references, samples), so that a method that samples more trains less.
    """
    setting = work.setting
    place = work.place(f"{arm.name}_steps")
    if place.exists():
        return dict(files.read_json(place))
    train = split(setting.records, "tune", setting.folds, setting.group).train
    used = []
    for steps in PROBES:
        name = f"probe-{arm.name}-{steps}"
        # From its beginning also after a kill: the meter of a resumed run has not seen what was done before.
        shutil.rmtree(work._checkpoints(name), ignore_errors=True)
        try:
            _, meter = work.taught(arm, setting.rates[0], steps, TUNING_SEED, train, name)
        finally:
            shutil.rmtree(work._checkpoints(name), ignore_errors=True)
        used.append(setting.budget.used(meter))
    slope = (used[1] - used[0]) / (PROBES[1] - PROBES[0])
    fixed = used[0] - PROBES[0] * slope
    steps = math.floor((setting.budget.amount - fixed) / slope) if slope > 0 else 0
    if steps < 1:
        wanted = f"{fixed + slope:,.0f} {setting.budget.unit}"
        raise UserError(f"{arm.name}: the budget does not reach its first step, which takes {wanted}")
    found = {"steps": steps, "fixed": fixed, "per_step": slope}
    files.write_json(place, found)
    return found


def _attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or the reason it gives nothing: one arm's failure is not the others'."""
    try:
        return work()
    except UserError as error:
        return {"error": str(error)}
    except OSError:  # a full disk is nobody's failure: the same command goes on where it was
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _fits(protocol: Protocol, records: Mapping[str, Sequence[Record]]) -> bool:
    """Whether these records can be scored so."""
    kind = {"prefer": "preference", "answer": "demo", "text": "text"}.get(protocol)
    return "forget" in records if kind is None else bool(convert.serve(kind, records))


def _rules(setting: Setting) -> dict[str, list[float]]:
    """What rules that need no model score on the records every seed is tested on."""
    if setting.protocol != "prefer":
        return {}
    size = functools.cache(lambda text: len(setting.model.tokenizer(text)["input_ids"]))
    shorter = []
    for k in range(len(setting.seeds)):
        pairs: Any = convert.serve("preference", split(setting.records, k, setting.folds, setting.group).test)
        shorter.append(collapse.shorter_wins([(size(p.chosen), size(p.rejected)) for p in pairs]))
    return {"the shorter answer is the better": shorter, "the longer answer is the better": [1 - v for v in shorter]}


def _rate(lr: float | None) -> str:
    return "" if lr is None else f"_lr{lr:g}"


def _interval(found: Any) -> dict[str, float | None]:
    return {"mean": found.estimate, "low": found.low, "high": found.high}
