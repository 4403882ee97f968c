"""Units of work: one arm trained with one seed and scored, each stored in its own JSON file.

A comparison that was stopped resumes, and the same command in a second shell shares the work; an arm that fails is
reported and does not affect the others.
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
PHASES = ("probes", "search", "training", "scoring", "generation")  # generation is part of the others


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
        """Whether it returns predictions and no model."""
        return "models" not in self.entry["gives"]

    @property
    def trains(self) -> bool:
        """Whether it has a `fit`."""
        return bool(self.entry["fit"])

    def adapter(self, fit: Mapping[str, Any]) -> int:
        """The rank of the LoRA adapter that it trains, 0 for all weights; `fit` has the options common to all arms."""
        default = inspect.signature(self.function).parameters["fit"].default.lora
        return int({"lora": default, **fit, **self.fit}["lora"])

    def inputs(self, model: Model, train: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """The model, and for each parameter the records of its name or kind, or converted from another kind.

        Raises:
            UserError: these records do not provide a required input.
        """
        models = {name: model for name, need in self.entry["needs"].items() if need["kind"] == "model"}
        return models | convert.inputs(self.name, self.entry["needs"], train)


@dataclass(frozen=True, kw_only=True)
class FixedModel:
    """A model that is scored without training: the untouched one, a folder, a server. Opened when it is scored."""

    name: str
    open: Callable[[], Model | LM]
    trains = predicts = False


class Job(NamedTuple):
    """A unit, or the count of an arm's steps, in a form that can be sent to another process."""

    arm: str
    lr: float | None
    steps: int | None
    seed: int
    part: Part | Literal["steps"]

    @property
    def name(self) -> str:
        """Its name in reports, from which its file is named."""
        if self.part == "steps":
            return f"{self.arm}_steps"
        rate = "" if self.lr is None else f"_lr{self.lr:g}"
        return f"{self.arm}{rate}_{'tune' if self.part == 'tune' else 'test'}{self.seed}"


Done = Iterator[tuple[Any, dict[str, Any]]]
Elsewhere = Callable[[Sequence[Any]], Done]  # runs jobs of any kind, yields (job, outcome) as they finish


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that is the same for every arm.

    Args:
        model: the start model of every trained arm, and the reference of relative measures.
        records: by parameter name (`forget`, `retain`) or record kind (`preference`, `demo`, ...).
        protocol: the name of the scoring protocol.
        budget: what each arm may spend.
        seeds: test seeds; the tuning seed is not among them.
        rates: the grid of learning rates for every arm that trains.
        beyond: how many rates beyond the grid an arm may try while its best rate is at the edge.
        adapter_rates: factor on `rates` for arms that train a LoRA adapter.
        fit: training options that are the same for all arms.
        folds: 0: one split; else seed k is tested on fold k.
        group: a field; records with equal values stay on the same side of a split. The prompt by default.
        answer: how to extract final answers, where arms are ranked by those (`evaluate.answers`).
        stop: stop strings of answers; they are not part of the answer.
        gold: a model that was never trained on what must be forgotten.
        judge: decides which of two answers is better.
        folder: where units and models are stored.
        diagnostics: for which seeds' models answers, judge and general text are evaluated too.
        keep: save the model of the first seed of every arm.
        track: a tracking tool that also gets the training curves.
        general: general text that shows what training broke; the embedded text if empty.
        metrics: the user's own, by name.
        by_text: score all arms on text alone: some have other tokenizers or are servers.
        whole: nothing is trained: every arm is scored once on all records, and intervals are over records.
        untouched: the start model is an arm.
        elsewhere: runs jobs in other processes and yields outcomes as they finish; the rest runs here.
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
    _cache: dict[str, Any] = field(default_factory=dict)

    def rates_of(self, arm: Arm) -> list[float]:
        """The learning-rate grid of an arm."""
        adapter = arm.adapter(self.fit)
        return [float(f"{rate * self.adapter_rates:.3g}") if adapter else rate for rate in self.rates]

    def tuned_on_tested(self) -> list[str]:
        """Parameters with too few records for separate tuning and test sets."""
        if self.whole:
            return []
        tune, test = self.split("tune").test, self.split(0).test
        return [name for name in protocols.by_name(self.protocol).scored if name in tune and tune[name] is test[name]]

    def split(self, part: Part) -> Split:
        """The records of a test seed (by its number) or of tuning."""
        protocol = protocols.by_name(self.protocol)
        return split(self.records, part, self.folds, self.group, (*protocol.scored, *protocol.extra_sets))

    @property
    def tests(self) -> list[tuple[int, Part]]:
        """Seed and part of each test of an arm."""
        return [(self.seeds[0], "all")] if self.whole else [(seed, k) for k, seed in enumerate(self.seeds)]

    @functools.cached_property
    def with_end(self) -> bool:
        """Whether answers are scored with their end token; the same for all units."""
        if self.by_text:  # not by one arm's tokenizer: the rule would depend on the order of the arms
            return False
        return Scoring(records=self.records, start=self.model).with_end()

    def scoring(self, part: Part, seed: int, options: Mapping[str, Any]) -> Scoring:
        """What a unit is scored on; results of the start model are computed once per part and shared by its units."""
        key = part if isinstance(part, str) else part % max(self.folds, 1)
        return Scoring(
            records=self.split(part).test, start=self.model, gold=self.gold, seed=seed, options=options, brief=True,
            end=self.with_end, answer=self.answer, stop=self.stop, general=None if part == "tune" else self.general,
            metrics=self.metrics,
            _kept=self._cache.setdefault(str(key), {}), _general=self._cache.setdefault("general", {}),
        )  # fmt: skip


class Unit(NamedTuple):
    """One training run (none for `FixedModel`) and its scoring, with a test seed or on the tuning records."""

    arm: Arm | FixedModel
    lr: float | None
    steps: int | None
    seed: int
    part: Part

    @property
    def job(self) -> Job:
        """This unit as a job."""
        return Job(self.arm.name, self.lr, self.steps, self.seed, self.part)

    @property
    def name(self) -> str:
        """The name of its job."""
        return self.job.name


class Work:
    """Run units of work, each once, and store their outcomes; several processes may share them.

    Args:
        setting: what all arms share.
        report: called with one line for every finished unit.
        primary: the measure arms are ranked by.
        total: number of units, for the report.
    """

    def __init__(self, setting: Setting, report: Callable[[str], None], primary: str, total: int) -> None:
        self.setting, self.report, self.primary, self.total, self.finished = setting, report, primary, total, 0
        self.durations: list[float] = []  # seconds of the units that trained here
        self.spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        folders.enter(setting.folder, "comparison")
        self.units = setting.folder / "units"
        self.units.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of a unit or of an arm's step count."""
        return self.units / f"{plain_name(name)}.json"

    def all_of(self, units: Sequence[Unit]) -> list[dict[str, Any]]:
        """Return the outcomes in the order of the units; wait for those that another process is running."""
        outcomes = self._run_all({unit.job: functools.partial(self.unit, unit) for unit in units})
        return [outcomes[unit.job] for unit in units]

    def steps_of(self, arms: Sequence[Arm]) -> list[dict[str, Any]]:
        """How many steps of each arm the budget allows, or the error."""
        outcomes = self._run_all({_steps_job(arm): functools.partial(self.steps, arm) for arm in arms})
        return [outcomes[_steps_job(arm)] for arm in arms]

    def do(self, job: Job, arm: Arm | FixedModel) -> dict[str, Any]:
        """Run a job for another process and return its outcome."""
        if job.part == "steps":
            assert isinstance(arm, Arm)
            return self.steps_of([arm])[0]
        return self.all_of([Unit(arm, job.lr, job.steps, job.seed, job.part)])[0]

    def _run_all(self, jobs: Mapping[Job, Callable[[], dict[str, Any]]]) -> dict[Job, dict[str, Any]]:
        """Return the jobs' outcomes; a lock file per job name keeps two processes from running the same one."""
        outcomes: dict[Job, dict[str, Any]] = {}
        if self.setting.elsewhere:
            start = time.monotonic()
            for job, outcome in self.setting.elsewhere([job for job in jobs if not self._cached(job)]):
                outcomes[job] = outcome
                self._add_time(job, outcome)
                self._report_unit(job, outcome, f"{progress.duration(time.monotonic() - start)} since the start")
        while len(outcomes) < len(jobs):
            finished = len(outcomes)
            for job, run in jobs.items():
                if job in outcomes:
                    continue
                with folders.claimed(self.units, self.path(job.name).name) as holder:
                    if holder is None:
                        outcomes[job] = run()
            if len(outcomes) == finished:  # other processes hold all remaining jobs
                time.sleep(1)
        return outcomes

    def unit(self, unit: Unit) -> dict[str, Any]:
        """Train and score one arm with one seed, or read the stored outcome. Failures are stored too."""
        path, job = self.path(unit.name), unit.job
        files.sweep(self.units, path.name)
        if cached := self._cached(job):
            self._add_time(job, cached)
            return cached
        start, resumed = time.monotonic(), self._checkpoints(path.stem).exists()
        with progress.labelled(f"unit {self.finished + 1} of {self.total}, {unit.name}"):
            outcome = attempt(lambda: self._train_and_score(unit, path.stem))
        outcome |= {"resumed": True} if resumed else {}  # its meter covers only the part after resuming
        files.write_json(path, outcome)
        shutil.rmtree(self._checkpoints(path.stem), ignore_errors=True)
        self._add_time(job, outcome)
        seconds = time.monotonic() - start
        self.durations += [seconds] if outcome.get("seconds", {}).get("training") else []
        mean = sum(self.durations) / len(self.durations) if self.durations else 0.0
        remaining = f", about {progress.duration(mean * (self.total - self.finished))} left" if mean else ""
        self._report_unit(job, outcome, f"{seconds:.0f} s{remaining}")
        return outcome

    def _report_unit(self, job: Job, outcome: Mapping[str, Any], timing: str) -> None:
        if job.part != "steps":
            result = outcome.get("error") or f"{self.primary} {outcome['metrics'][self.primary]:.4f}"
            self.report(f"unit {self.finished} of {self.total}: {job.name}: {result} ({timing})")

    def _add_time(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Add the seconds of a job, whichever process ran it and when."""
        seconds = outcome.get("seconds", {})
        if job.part == "steps":
            self.spent["probes"] += seconds or 0.0
            return
        self.finished += 1
        self.spent["search" if job.part == "tune" else "training"] += seconds.get("training", 0.0)
        self.spent["scoring"] += seconds.get("scoring", 0.0)
        self.spent["generation"] += seconds.get("generation", 0.0)

    def _cached(self, job: Job) -> dict[str, Any] | None:
        """A job's stored outcome; None if there is none, it failed (it is retried) or its file is damaged."""
        path = self.path(job.name)
        try:
            outcome = files.read_json(path)
            if isinstance(outcome, dict) and ("steps" if job.part == "steps" else "metrics") in outcome:
                return outcome
            if not (isinstance(outcome, dict) and "error" in outcome):
                print(f"didact: {path}: damaged; running this job again", file=sys.stderr)
        except FileNotFoundError:
            pass
        except UserError as error:
            print(f"didact: {error}; running this job again", file=sys.stderr)
        return None

    def steps(self, arm: Arm) -> dict[str, Any]:
        """How many steps of an arm the budget allows, or the error; measured once."""
        plan = self._cached(job := _steps_job(arm)) or attempt(lambda: self._count_steps(arm))
        self._add_time(job, plan)
        return plan

    def _count_steps(self, arm: Arm) -> dict[str, Any]:
        start = time.monotonic()
        train = self.setting.split("tune").train

        def probe(steps: int) -> cost.Meter:
            name = f"probe-{plain_name(arm.name)}-{steps}"
            # From the first step even after a kill: the meter of a resumed run misses what was done before.
            shutil.rmtree(self._checkpoints(name), ignore_errors=True)
            try:
                return self._train(Unit(arm, self.setting.rates_of(arm)[0], steps, TUNING_SEED, "tune"), train, name)[1]
            finally:
                shutil.rmtree(self._checkpoints(name), ignore_errors=True)

        with progress.labelled(f"how many steps of {arm.name} the budget allows"):
            plan = steps_within(self.setting.budget, arm.name, probe) | {"seconds": time.monotonic() - start}
        files.write_json(self.path(_steps_job(arm).name), plan)
        return plan

    def _train_and_score(self, unit: Unit, name: str) -> dict[str, Any]:
        setting, arm = self.setting, unit.arm
        first = unit.part != "tune" and unit.seed == setting.seeds[0]
        costs, predict, options = dict.fromkeys(COSTS, 0.0), None, {}
        start, generated = time.monotonic(), cost.spent("generation")
        if isinstance(arm, FixedModel):
            subject: Any = arm.open()
        else:
            result, meter = self._train(unit, setting.split(unit.part).train, name)
            costs = {k: float(getattr(meter, k)) for k in costs}
            model, predict, options = result.models.get("model"), result.predict, self._options(arm)
            scores_answers = protocols.by_name(setting.protocol).answers is not None
            if not isinstance(model, Model) and (predict is None or not scores_answers):
                raise UserError(f"{arm.name} gives no model, so it cannot be scored by '{setting.protocol}'")
            subject = model if isinstance(model, Model) else predict
            if first and setting.keep and isinstance(model, Model):
                model.save(setting.folder / "models" / plain_name(arm.name))
        scoring = setting.scoring(unit.part, unit.seed, options)
        if setting.by_text or (unit.part != "tune" and setting.diagnostics in ("all", "first" if first else "all")):
            arguments = self.primary, setting.judge, predict, setting.by_text, first
            measures, samples = score.score(setting.protocol, subject, scoring, *arguments)
        else:
            measures, samples = score.ranking(setting.protocol, subject, scoring, self.primary, predict), []
        outcome: dict[str, Any] = {"metrics": {k: m.value for k, m in measures.items()}, "cost": costs}
        scoring_time = time.monotonic() - start - costs["seconds"]
        outcome["seconds"] = {
            "training": costs["seconds"], "scoring": scoring_time, "generation": cost.spent("generation") - generated,
        }  # fmt: skip
        if isinstance(arm, FixedModel):  # it does not vary with the seed: intervals are over records
            outcome["values"] = list(measures[self.primary].values) if self.primary in measures else []
        if first:
            outcome["samples"] = samples
            outcome["meaning"] = {
                k: {"n": m.n, "unit": m.unit, "better": m.better, "help": m.help} for k, m in measures.items()
            }
        if not math.isfinite(outcome["metrics"][self.primary]):
            raise UserError(f"{self.primary} is not a finite number")
        return outcome

    def _train(self, unit: Unit, train: Mapping[str, Sequence[Record]], name: str) -> tuple[Result, cost.Meter]:
        """Run the method on its training records and meter the cost."""
        arm, setting = unit.arm, self.setting
        assert isinstance(arm, Arm)
        arguments = arm.inputs(setting.model, train)
        parameters = inspect.signature(arm.function).parameters
        if arm.trains:
            changes = {**setting.fit, **arm.fit, "seed": unit.seed, "folder": str(self._checkpoints(name))}
            changes |= {k: v for k, v in (("lr", unit.lr), ("steps", unit.steps)) if v is not None}
            arguments["fit"] = parameters["fit"].default.replace(**changes)
            if setting.track and "hooks" in parameters:
                arguments["hooks"] = [track.tracker(setting.track, setting.folder / "track" / name, changes)]
        elif "seed" in parameters:
            arguments["seed"] = unit.seed
        with cache.private(), cost.metered() as meter:  # every arm pays for its own reference passes
            result = arm.function(**arguments, **registry.assemble(arm.function, arm.options))
        return result, meter

    def _options(self, arm: Arm) -> dict[str, Any]:
        """All of an arm's own options with the values its method was called with."""
        own = {o["name"] for o in arm.entry["options"]}
        defaults = {n: p.default for n, p in inspect.signature(arm.function).parameters.items() if n in own}
        return defaults | registry.assemble(arm.function, arm.options)

    def _checkpoints(self, name: str) -> Path:
        return self.setting.folder / "checkpoints" / name


def _steps_job(arm: Arm) -> Job:
    """The job that measures an arm's steps."""
    return Job(arm.name, None, None, TUNING_SEED, "steps")


def plain_name(name: str) -> str:
    """The name of an arm or unit as a file name."""
    return re.sub(r"[^A-Za-z0-9.+-]", "_", name)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `work()`, or its error as an outcome, so that one arm's failure does not stop the others."""
    try:
        return work()
    except UserError as error:
        return {"error": str(error)}
    except OSError:  # a full disk is no arm's failure: the same command resumes
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
