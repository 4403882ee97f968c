"""Units of work: one arm trained with one seed and scored, kept as one JSON file each.

A comparison that was stopped goes on where it was, and the same command in a second shell shares the work; an arm that
fails is reported and leaves the others alone.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from didact import files, folders, progress, registry
from didact.compare import score
from didact.compare.budget import Budget, steps_within
from didact.compare.split import Part, Split, split
from didact.data import convert
from didact.evaluate import judges, own, protocols
from didact.evaluate.protocols import Scoring
from didact.learn import track
from didact.models import cache, cost
from didact.models.model import Model
from didact.types import LM, Record, Result, UserError

UNTOUCHED = "untouched"
TUNING_SEED = 1000
COSTS = ("tokens", "flops", "seconds")
PHASES = ("probes", "search", "training", "scoring", "generation")  # of the last, all that is in the others


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with its options: one row of the leaderboard. `entry` is its catalogue entry."""

    name: str
    entry: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def function(self) -> Callable[..., Result]:
        """The method itself."""
        return getattr(importlib.import_module(self.entry["module"]), self.entry["function"])

    @property
    def predicts(self) -> bool:
        """Whether it gives answers and no model."""
        return "models" not in self.entry["gives"]

    @property
    def trains(self) -> bool:
        """Whether it has a `fit`."""
        return bool(self.entry["fit"])

    def adapter(self, fit: Mapping[str, Any]) -> int:
        """The rank of the LoRA adapter that it trains, 0 for all weights; `fit` are the options of all arms."""
        default = inspect.signature(self.function).parameters["fit"].default.lora
        return int({"lora": default, **fit, **self.fit}["lora"])

    def inputs(self, model: Model, train: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """The model and, for each parameter, the records given for it by name or kind, or made of another kind.

        Raises:
            UserError: a required input cannot be had from these records.
        """
        models = {name: model for name, need in self.entry["needs"].items() if need["kind"] == "model"}
        return models | convert.inputs(self.name, self.entry["needs"], train)


@dataclass(frozen=True, kw_only=True)
class Given:
    """A model that is scored as it is: the untouched one, a folder, a server. It is opened when its turn comes."""

    name: str
    open: Callable[[], Model | LM]
    trains = predicts = False


class Job(NamedTuple):
    """A unit, or how many steps an arm's budget allows, in words that another process understands."""

    arm: str
    lr: float | None
    steps: int | None
    seed: int
    part: Part | Literal["steps"]

    @property
    def name(self) -> str:
        """What its file is called, and what is reported of it."""
        if self.part == "steps":
            return f"{self.arm}_steps"
        rate = "" if self.lr is None else f"_lr{self.lr:g}"
        return f"{self.arm}{rate}_{'tune' if self.part == 'tune' else 'test'}{self.seed}"


Done = Iterator[tuple[Any, dict[str, Any]]]
Elsewhere = Callable[[Sequence[Any]], Done]  # jobs of any kind, to what came of each as it comes


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that is the same for every arm.

    Args:
        model: where every arm that is taught starts, and what relative measures are read against.
        records: by parameter name (`forget`, `retain`) or record kind (`preference`, `demo`, ...).
        protocol: the name of how arms are scored.
        budget: what each may use.
        seeds: test seeds; the tuning seed is none of them.
        rates: learning rates each arm that trains is tuned over.
        beyond: rates more, at most, that an arm tries where its best is at the edge of those it tried.
        adapter_rates: what `rates` are multiplied by for arms that train a LoRA adapter.
        fit: training options that are the same for all arms.
        folds: 0 has one split; else seed k is tested on fold k.
        group: a field whose equal values are kept on one side of a split; the prompt by default.
        answer: how final answers are found, where arms are ranked by those (`evaluate.answers`).
        stop: texts that end answers before them.
        gold: a model that never saw what must be forgotten.
        judge: says which of two answers is better.
        folder: where units and models are kept.
        diagnostics: which seeds' models also answer, are judged and read general text.
        keep: save the model of the first seed of every arm.
        track: a tool that curves go to as well.
        general: general text, on which it is seen what training broke; the embedded one where there is none.
        metrics: the user's own, by name.
        by_text: models of several tokenizers, or servers, are among the arms: all are scored on text alone.
        whole: nothing is taught, so that every arm is scored once on all records, which are then the units.
        untouched: the start model is an arm.
        elsewhere: other processes that do jobs, and give what came out as it comes; what they do not is done here.
    """

    model: Model
    records: Mapping[str, Sequence[Record]]
    protocol: str
    budget: Budget
    seeds: Sequence[int]
    rates: Sequence[float]
    beyond: int = 3
    adapter_rates: float = 1.0
    fit: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 0
    group: str | None = None
    answer: str | None = None
    stop: Sequence[str] = ()
    gold: Model | None = None
    judge: judges.Judge | None = None
    folder: Path
    diagnostics: Literal["all", "first", "none"] = "all"
    keep: bool = True
    track: track.Kind | None = None
    general: Sequence[str] = ()
    metrics: Mapping[str, own.Metric] = field(default_factory=dict)
    by_text: bool = False
    whole: bool = False
    untouched: bool = True
    elsewhere: Elsewhere | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def rates_of(self, arm: Arm) -> list[float]:
        """The learning rates that an arm is tuned over at first."""
        adapter = arm.adapter(self.fit)
        return [float(f"{rate * self.adapter_rates:.3g}") if adapter else rate for rate in self.rates]

    def tuned_on_tested(self) -> list[str]:
        """Parameters with too few records to tune on others than are tested."""
        if self.whole:
            return []
        tune, test = self.split("tune").test, self.split(0).test
        return [name for name in protocols.named(self.protocol).scored if name in tune and tune[name] is test[name]]

    def split(self, part: Part) -> Split:
        """The records of a test seed, by its number, or of tuning."""
        used = protocols.named(self.protocol)
        return split(self.records, part, self.folds, self.group, (*used.scored, *used.beside))

    @property
    def tests(self) -> list[tuple[int, Part]]:
        """The seed and the part of every test of an arm."""
        return [(self.seeds[0], "all")] if self.whole else [(seed, k) for k, seed in enumerate(self.seeds)]

    @functools.cached_property
    def with_end(self) -> bool:
        """Whether answers are scored with their end token, by all units alike."""
        if self.by_text:  # not as one of them has it: in another order of the arms it would be another rule
            return False
        return Scoring(records=self.records, start=self.model).with_end()

    def scoring(self, part: Part, seed: int, options: Mapping[str, Any]) -> Scoring:
        """What a unit is scored on; what is the start model's own is worked out once for all units of a part."""
        where = part if isinstance(part, str) else part % max(self.folds, 1)
        return Scoring(
            records=self.split(part).test, start=self.model, gold=self.gold, seed=seed, options=options, brief=True,
            end=self.with_end, answer=self.answer, stop=self.stop, general=None if part == "tune" else self.general,
            metrics=self.metrics,
            _kept=self._kept.setdefault(str(where), {}), _general=self._kept.setdefault("general", {}),
        )  # fmt: skip


class Unit(NamedTuple):
    """One training (or none, of a model that is given) and its scoring: by a test seed, or on the tuning records."""

    arm: Arm | Given
    lr: float | None
    steps: int | None
    seed: int
    part: Part

    @property
    def job(self) -> Job:
        """The same in words."""
        return Job(self.arm.name, self.lr, self.steps, self.seed, self.part)

    @property
    def name(self) -> str:
        """What its file is called, and what is reported of it."""
        return self.job.name


class Work:
    """Units of work, each done once and kept; several processes may share them.

    Args:
        setting: what is the same for all.
        report: called with one line for every unit done.
        primary: what arms are ranked by.
        total: units in all, for the report.
    """

    def __init__(self, setting: Setting, report: Callable[[str], None], primary: str, total: int) -> None:
        self.setting, self.report, self.primary, self.total, self.did = setting, report, primary, total, 0
        self.took: list[float] = []  # by the units that trained here
        self.spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        folders.enter(setting.folder, "comparison")
        self.units = setting.folder / "units"
        self.units.mkdir(parents=True, exist_ok=True)

    def place(self, name: str) -> Path:
        """The file of a unit, or of what else is found out once."""
        return self.units / f"{plain_name(name)}.json"

    def all_of(self, wanted: Sequence[Unit]) -> list[dict[str, Any]]:
        """Units as they were found, in the order given; what another process is at is waited for."""
        found = self._each({unit.job: functools.partial(self.unit, unit) for unit in wanted})
        return [found[unit.job] for unit in wanted]

    def steps_of(self, arms: Sequence[Arm]) -> list[dict[str, Any]]:
        """How many steps of each arm the budget allows, or why that could not be found."""
        found = self._each({_counting(arm): functools.partial(self.steps, arm) for arm in arms})
        return [found[_counting(arm)] for arm in arms]

    def do(self, job: Job, arm: Arm | Given) -> dict[str, Any]:
        """What comes of a job that another process asks for."""
        if job.part == "steps":
            assert isinstance(arm, Arm)
            return self.steps_of([arm])[0]
        return self.all_of([Unit(arm, job.lr, job.steps, job.seed, job.part)])[0]

    def _each(self, wanted: Mapping[Job, Callable[[], dict[str, Any]]]) -> dict[Job, dict[str, Any]]:
        """What the jobs give; no two processes are at one of a name."""
        found: dict[Job, dict[str, Any]] = {}
        if self.setting.elsewhere:
            began = time.monotonic()
            for job, outcome in self.setting.elsewhere([job for job in wanted if not self._kept(job)]):
                found[job] = outcome
                self._count(job, outcome)
                self._tell(job, outcome, f"{progress.duration(time.monotonic() - began)} since these began")
        while len(found) < len(wanted):
            before = len(found)
            for job, work in wanted.items():
                if job in found:
                    continue
                with folders.claimed(self.units, self.place(job.name).name) as other:
                    if other is None:
                        found[job] = work()
            if len(found) == before:  # all that is left is in other hands
                time.sleep(1)
        return found

    def unit(self, unit: Unit) -> dict[str, Any]:
        """Train and score one arm with one seed; from its file where that is there. Failures are kept too."""
        place, job = self.place(unit.name), unit.job
        files.sweep(self.units, place.name)
        if kept := self._kept(job):
            self._count(job, kept)
            return kept
        began, resumed = time.monotonic(), self._checkpoints(place.stem).exists()
        with progress.shown(f"unit {self.did + 1} of {self.total}, {unit.name}"):
            outcome = attempt(lambda: self._scored(unit, place.stem))
        outcome |= {"resumed": True} if resumed else {}  # its meter saw the last part only
        files.write_json(place, outcome)
        shutil.rmtree(self._checkpoints(place.stem), ignore_errors=True)
        self._count(job, outcome)
        seconds = time.monotonic() - began
        self.took += [seconds] if outcome.get("seconds", {}).get("training") else []
        mean = sum(self.took) / len(self.took) if self.took else 0.0
        left = f", about {progress.duration(mean * (self.total - self.did))} left" if mean else ""
        self._tell(job, outcome, f"{seconds:.0f} s{left}")
        return outcome

    def _tell(self, job: Job, outcome: Mapping[str, Any], more: str) -> None:
        if job.part != "steps":
            shown = outcome.get("error") or f"{self.primary} {outcome['metrics'][self.primary]:.4f}"
            self.report(f"unit {self.did} of {self.total}: {job.name}: {shown} ({more})")

    def _count(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Add the seconds of a job, whoever spent them and when."""
        took = outcome.get("seconds", {})
        if job.part == "steps":
            self.spent["probes"] += took or 0.0
            return
        self.did += 1
        self.spent["search" if job.part == "tune" else "training"] += took.get("training", 0.0)
        self.spent["scoring"] += took.get("scoring", 0.0)
        self.spent["generation"] += took.get("generation", 0.0)

    def _kept(self, job: Job) -> dict[str, Any] | None:
        """What a job gave before; None where nothing was, it failed (it is tried once more) or its file is damaged."""
        place = self.place(job.name)
        try:
            kept = files.read_json(place)
            if isinstance(kept, dict) and ("steps" if job.part == "steps" else "metrics") in kept:
                return kept
            if not (isinstance(kept, dict) and "error" in kept):
                print(f"didact: {place}: damaged; found out anew", file=sys.stderr)
        except FileNotFoundError:
            pass
        except UserError as error:
            print(f"didact: {error}; found out anew", file=sys.stderr)
        return None

    def steps(self, arm: Arm) -> dict[str, Any]:
        """How many steps of an arm the budget allows, found once; or why it cannot be found."""
        found = self._kept(job := _counting(arm)) or attempt(lambda: self._counted(arm))
        self._count(job, found)
        return found

    def _counted(self, arm: Arm) -> dict[str, Any]:
        began = time.monotonic()
        train = self.setting.split("tune").train

        def probe(steps: int) -> cost.Meter:
            name = f"probe-{plain_name(arm.name)}-{steps}"
            # From its beginning also after a kill: the meter of a resumed run has not seen what was done before.
            shutil.rmtree(self._checkpoints(name), ignore_errors=True)
            try:
                return self._trained(Unit(arm, self.setting.rates_of(arm)[0], steps, TUNING_SEED, "tune"), train, name)[
                    1
                ]
            finally:
                shutil.rmtree(self._checkpoints(name), ignore_errors=True)

        with progress.shown(f"how many steps of {arm.name} the budget allows"):
            found = steps_within(self.setting.budget, arm.name, probe) | {"seconds": time.monotonic() - began}
        files.write_json(self.place(_counting(arm).name), found)
        return found

    def _scored(self, unit: Unit, name: str) -> dict[str, Any]:
        setting, arm = self.setting, unit.arm
        first = unit.part != "tune" and unit.seed == setting.seeds[0]
        used, predict, options = dict.fromkeys(COSTS, 0.0), None, {}
        began, spoke = time.monotonic(), cost.spent("generation")
        if isinstance(arm, Given):
            subject: Any = arm.open()
        else:
            result, meter = self._trained(unit, setting.split(unit.part).train, name)
            used = {k: float(getattr(meter, k)) for k in used}
            model, predict, options = result.models.get("model"), result.predict, self._options(arm)
            able = protocols.named(setting.protocol).answers is not None
            if not isinstance(model, Model) and (predict is None or not able):
                raise UserError(f"{arm.name} gives no model, so it cannot be scored by '{setting.protocol}'")
            subject = model if isinstance(model, Model) else predict
            if first and setting.keep and isinstance(model, Model):
                model.save(setting.folder / "models" / plain_name(arm.name))
        scoring = setting.scoring(unit.part, unit.seed, options)
        if setting.by_text or (unit.part != "tune" and setting.diagnostics in ("all", "first" if first else "all")):
            how = self.primary, setting.judge, predict, setting.by_text, first
            measures, samples = score.score(setting.protocol, subject, scoring, *how)
        else:
            measures, samples = score.ranking(setting.protocol, subject, scoring, self.primary, predict), []
        outcome: dict[str, Any] = {"metrics": {k: m.value for k, m in measures.items()}, "cost": used}
        scored = time.monotonic() - began - used["seconds"]
        outcome["seconds"] = {
            "training": used["seconds"], "scoring": scored, "generation": cost.spent("generation") - spoke,
        }  # fmt: skip
        if isinstance(arm, Given):  # nothing but the records tells one from another
            outcome["values"] = list(measures[self.primary].values) if self.primary in measures else []
        if first:
            outcome["samples"] = samples
            outcome["meaning"] = {
                k: {"n": m.n, "unit": m.unit, "better": m.better, "help": m.help} for k, m in measures.items()
            }
        if not math.isfinite(outcome["metrics"][self.primary]):
            raise UserError(f"{self.primary} is not a number")
        return outcome

    def _trained(self, unit: Unit, train: Mapping[str, Sequence[Record]], name: str) -> tuple[Result, cost.Meter]:
        """Run the method on its share of the records, and meter it."""
        arm, setting = unit.arm, self.setting
        assert isinstance(arm, Arm)
        given = arm.inputs(setting.model, train)
        takes = inspect.signature(arm.function).parameters
        if arm.trains:
            changes = {**setting.fit, **arm.fit, "seed": unit.seed, "folder": str(self._checkpoints(name))}
            changes |= {k: v for k, v in (("lr", unit.lr), ("steps", unit.steps)) if v is not None}
            given["fit"] = takes["fit"].default.replace(**changes)
            if setting.track and "hooks" in takes:
                given["hooks"] = [track.tracker(setting.track, setting.folder / "track" / name, changes)]
        elif "seed" in takes:
            given["seed"] = unit.seed
        with cache.private(), cost.metered() as meter:  # every arm pays for its own references
            result = arm.function(**given, **registry.assemble(arm.function, arm.options))
        return result, meter

    def _options(self, arm: Arm) -> dict[str, Any]:
        """All own options of an arm, as its method was called."""
        own = {o["name"] for o in arm.entry["options"]}
        defaults = {n: p.default for n, p in inspect.signature(arm.function).parameters.items() if n in own}
        return defaults | registry.assemble(arm.function, arm.options)

    def _checkpoints(self, name: str) -> Path:
        return self.setting.folder / "checkpoints" / name


def _counting(arm: Arm) -> Job:
    """The job of finding an arm's steps."""
    return Job(arm.name, None, None, TUNING_SEED, "steps")


def plain_name(name: str) -> str:
    """A name of an arm or unit as a file's name."""
    return re.sub(r"[^A-Za-z0-9.+-]", "_", name)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or the reason it gives nothing: one arm's failure is not the others'."""
    try:
        return work()
    except UserError as error:
        return {"error": str(error)}
    except OSError:  # a full disk is nobody's failure: the same command goes on where it was
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
