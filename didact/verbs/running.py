"""`didact run`: teach, score before and after, and keep everything in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from didact import files, folders, progress, registry, untrusted
from didact.data import chat, formats
from didact.evaluate import measures, own, protocols
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Scoring, answer, collapse
from didact.infer import engines, generate, remote, replies, served
from didact.learn import checkpoint, distributed, track
from didact.learn.fit import MEMORY, Hook
from didact.models import cost, spread
from didact.models.model import Model
from didact.parallel import launch
from didact.requests import Request
from didact.types import LM, Result, UserError
from didact.verbs import card, inputs, procedures, provenance, watching
from didact.verbs.job import Job, all_inputs, named, prepare, signature, takes

NOT_ENDED = (
    "the start model does not end its answers: they are scored without an end token, before and after (the measures "
    "..._with_end count it)"
)
ASKED = 32  # records of a part that are answered before and after
SHOWN = 3  # of them shown
WRITTEN = (
    "checkpoints",
    "track",
    "samples.json",
    "findings.json",
    "figures.json",
    "records.jsonl",
    "transcript.jsonl",
    "history.jsonl",
    "report.html",
)  # beside the models and result.json
JOINED = "prompt and completion by one space, unless either has white space there"
BUDGET = ("budget_calls", "budget_tokens", "parallel_calls")  # what a run may use does not change what it is


def run(request: Request) -> dict[str, Any]:
    """Teach, score before and after, and write everything to `request.out`; returns what result.json holds.

    The same command after a kill resumes from the last checkpoint; after the end it only shows the result. An interrupt
    says from where.
    """
    try:
        with distributed.peers():
            return _run(request)
    except KeyboardInterrupt as stop:
        raise type(stop)(checkpoint.told(Path(request.out) / "checkpoints")) from None


def _run(request: Request) -> dict[str, Any]:
    out = Path(request.out)
    inputs.check_apart(request.out, all_inputs(request))
    folders.check(out, "run")
    found = inputs.contents(named(request))
    if done := _finished(out, request, found):
        return done | {"again": True}
    first = os.environ.get("RANK", "0") == "0"  # of several processes one writes
    with chat.dated(day := _day(out, request)):
        job = prepare(request)
        with folders.at_work(out, "run") if first else contextlib.nullcontext():
            if first and (done := _finished(out, request, found)):  # another process was at it meanwhile
                return done | {"again": True}
            torch.manual_seed(request.seed)
            if first:
                job.tell()
                _begin(out, job, found, day)
            try:
                return _taught(out, job, found, first, day)
            except UserError:
                if first:
                    with contextlib.suppress(OSError):  # the disk may be what is full
                        _say(out, "failed", request, found, day)
                raise


def _taught(out: Path, job: Job, found: Mapping[str, Any], first: bool, day: str) -> dict[str, Any]:
    began, resumed = time.monotonic(), (out / "checkpoints").exists()
    engine = _engine(job)
    scoring = _scoring(job)
    trained = "models" in job.entry["gives"]
    with progress.shown("before training"):
        before = scored(job.entry, scoring.start, scoring) if scoring and trained else None
    given = {"model": job.model} if "model" in job.entry["needs"] and job.model is not None else {}
    training = {"fit": job.fit} if job.entry["fit"] else {"seed": job.fit.seed} if "seed" in takes(job.function) else {}
    with cost.metered() as meter, progress.shown(job.request.method), engines.generating(engine):
        result: Result = job.function(**given, **job.train, **job.options, **training, **_hooks(out, job, scoring))
    result.call, result.metrics = None, vars(result).get("metrics", {})  # what is told of a run is the run's
    model, answered = result.models.get("model"), {}
    if scoring and isinstance(model, Model):
        with progress.shown("after training"):
            gold = scored(job.entry, scoring.gold, scoring) if scoring.gold else None
            result.metrics |= measures.metrics(before, scored(job.entry, model, scoring), gold)
            asked = _answers(job, scoring, model, result.predict)
        result.warnings += _warned(job.entry, result, [row for rows in asked.values() for row in rows])
        result.samples += [sample for rows in asked.values() for sample in rows[:SHOWN]]
        answered = {
            part: _counts(rows, scoring.with_end()) for part, rows in asked.items() if any(s["wanted"] for s in rows)
        }
    if scoring and result.predict and not trained:
        with progress.shown("asked plainly"):
            procedures.told(job.entry, cast(Model | LM, job.model), result, scoring)
    if meter.tokens and not resumed:  # of a resumed run only the method's own count, from its checkpoint, is whole
        result.cost.tokens, result.cost.flops = meter.tokens, meter.flops
    if isinstance(job.model, remote.Remote):
        counts = job.model.counts
        result.cost.calls, result.cost.tokens = counts.calls, result.cost.tokens + counts.tokens
        result.warnings += [f"{job.model.address}: {counts}"] if counts.cached else []
        result.warnings += [f"{job.model.address}: {counts.starved:,} {replies.STARVED}"] if counts.starved else []
    if engine is not None:
        result.cost.calls += engine.counts.calls
        result.warnings += engine.told()
    result.cost.seconds = time.monotonic() - began
    result.cost.peak_bytes = _peak(job)
    end_token = _end_token(result)
    if end_token == "not counted":
        result.warnings.append(NOT_ENDED)
    written = result.save(out) if first else _handed(result)
    report = _report(job, result, written)
    report |= {"answered": answered, "end_token": end_token, "inputs": found, "began": day}
    if not first:
        return report
    card.of_run(report, out)
    files.write_json(out / "samples.json", result.samples)
    files.write_json(out / "result.json", report)
    if not job.request.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return report


def _handed(result: Result) -> dict[str, str]:
    """Take part in the first process's saving of models that lie over all of them."""
    for model in result.models.values():
        if isinstance(model, Model) and spread.lies(model.module):
            model.save(os.devnull)
    return {}


def _engine(job: Job) -> engines.Engine | None:
    """What samples in place of the model, seen to be able to; None where the model does so itself."""
    request = job.request
    if not request.generate_with or not isinstance(job.model, Model):
        return None
    engine = served.named(
        request.generate_with, parallel=request.parallel_calls, budget_calls=request.budget_calls,
        budget_tokens=request.budget_tokens,
    )  # fmt: skip
    engine.begin(job.model, job.fit)
    return engine


def _hooks(out: Path, job: Job, scoring: Scoring | None) -> dict[str, Any]:
    """Trackers the user asked for, where the method trains; scores on the way, of which trackers are told too."""
    hooks: list[Hook] = []
    every, folder = job.request.evaluate_every, out / "checkpoints" if job.request.keep_best else None
    if every and scoring:
        used = next(protocols.named(name) for name in job.entry["protocol"] if scored_by(name, scoring.records))
        brief = dataclasses.replace(scoring, brief=True)

        def look(model: Model) -> dict[str, Measure]:
            return used.score(model, brief) | own.score(brief.metrics, partial(generate.generate, model), used, brief)

        hooks.append(watching.Watch(every, used, look, scoring.start, folder, list(scoring.metrics)))
    if job.request.track and "hooks" in takes(job.function):
        hooks.append(track.tracker(job.request.track, out, {**job.options, **vars(job.fit)}))
    return {"hooks": hooks} if hooks else {}


def _scoring(job: Job) -> Scoring | None:
    """What the method's protocols score on; None where it has none, or no records for them."""
    if job.model is None or not any(scored_by(name, job.scored) for name in job.entry["protocol"]):
        return None
    if not isinstance(job.model, Model) and not job.entry["answers"]:
        return None
    records = {name: rows for name, rows in job.scored.items() if name != "gold"}
    options = {n: p.default for n, p in signature(job.function) if n in _own(job)} | job.options
    return Scoring(
        records=records, start=cast(Model, job.model), gold=job.scored.get("gold"), seed=job.request.seed,
        options=options,
        answer=job.request.final_answer, stop=job.request.stops, general=job.general, metrics=job.metrics,
        end=None if isinstance(job.model, Model) else False,  # whether a server's model ends answers is not known
    )  # fmt: skip


def scored(entry: Mapping[str, Any], model: Model, scoring: Scoring) -> dict[str, Measure]:
    """All measures of a model by a method's protocols."""
    out: dict[str, Measure] = {}
    for name in entry["protocol"]:
        if scored_by(name, scoring.records):
            out |= protocols.named(name).score(model, scoring)
            if name == entry["protocol"][0]:
                out |= own.score(scoring.metrics, partial(generate.generate, model), protocols.named(name), scoring)
    return out | scoring.kept_general(model)


def scored_by(name: str, records: Mapping[str, Any]) -> bool:
    """Whether a protocol can score a model on these records; some need none."""
    protocol = protocols.named(name)
    return not protocol.kind or bool(protocol.records(records))


def _answers(
    job: Job, scoring: Scoring, model: Model, predict: Callable[..., Any] | None
) -> dict[str, list[dict[str, str]]]:
    """Answers before and after, to some records of every part that is scored, drawn at random."""
    used = next(protocols.named(name) for name in job.entry["protocol"] if scored_by(name, scoring.records))
    parts = {k: v for k, v in scoring.records.items() if v and k != "holdout" and hasattr(v[0], "prompt")}
    asked = [] if model.kind == "encoder" else protocols.drawn(used, scoring, parts, ASKED)
    if not asked:
        return {}
    prompts = [one.prompt for one in asked]
    ask = partial(generate.generate, stop=scoring.stop)
    sides = ask(scoring.start, prompts), (predict or partial(ask, model))(prompts)
    out: dict[str, list[dict[str, str]]] = {}
    for one, before, after in zip(asked, *sides, strict=True):
        out.setdefault(one.part, []).append({**one._asdict(), "before": before, "after": after})
    return out


def _warned(entry: Mapping[str, Any], result: Result, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What numbers and answers mean that better and worse do not tell."""
    told = [text for name in entry["protocol"] for text in protocols.named(name).warns(result.metrics)]
    return told + collapse.warns([row["before"] for row in rows], [row["after"] for row in rows])


def _end_token(result: Result) -> str | None:
    """Whether the end token of answers was counted; None where no answers were scored."""
    beside = {name.rpartition("_with")[2] for name in result.metrics if name.endswith("_end")}
    return "counted" if "out_end" in beside else "not counted" if beside else None


def _counts(rows: Sequence[Mapping[str, str]], ended: bool) -> dict[str, int]:
    """How many answers are the wanted one to the letter, of those that have one; `ended`: nothing may follow it."""
    known = [row for row in rows if row["wanted"]]
    right = {side: sum(answer.given(row[side], row["wanted"], ended) for row in known) for side in ("before", "after")}
    return {"of": len(known), **right}


def _begin(out: Path, job: Job, found: Mapping[str, Any], day: str) -> None:
    """Say that a run is under way; what another run left in the folder goes, its own checkpoints stay."""
    try:
        models = list(out.glob("model*"))
        for model in models:
            files.replaceable(model)
        kept = _kept(out)
        if kept.get("status") == "done" and (damaged := _damaged(out)):
            print(f"didact: {damaged}; the run is made anew", file=sys.stderr)
        if kept and not (_goes_on(kept, job.request) and inputs.changed(kept.get("inputs", {}), found) is None):
            for old in (*models, *(out / name for name in WRITTEN)):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        files.sweep(out)
        _say(out, "running", job.request, found, day)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _say(out: Path, status: str, request: Request, found: Mapping[str, Any], day: str) -> None:
    """Write a result.json that has only the run's state yet."""
    state = {"schema": provenance.SCHEMA, "status": status, **_who(request), "inputs": found, "began": day}
    files.write_json(out / "result.json", state)


def _goes_on(kept: Mapping[str, Any], request: Request) -> bool:
    """Whether a folder holds the beginning of this very run."""
    same = kept.get("request") == files.plain(_who(request)["request"])
    return same and kept.get("status") in ("running", "failed")


def _day(out: Path, request: Request) -> str:
    """When the run began, which is what its chat template may write: an earlier day, where it goes on."""
    kept = _kept(out)
    return str(kept["began"]) if _goes_on(kept, request) and "began" in kept else chat.today()


def _who(request: Request) -> dict[str, Any]:
    """What makes two runs the same run."""
    how = (
        "argv",
        "overwrite",
        "keep_checkpoints",
        "track",
        "provenance",
        "out",
        "device",
        "dry_run",
        "print_config",
        "config",
        "function_timeout",
        "generate_with",
        *BUDGET,
    )
    told = {k: v for k, v in vars(request).items() if k not in how}
    told["fit"] = {k: v for k, v in request.fit.items() if k not in MEMORY}
    told |= {"generate_with": "an engine"} if request.generate_with else {}  # another address goes on
    argv = [untrusted.without_credentials(word) for word in request.argv]  # of a repeated flag only the last is checked
    return {"verb": "run", "method": request.method, "preset": request.preset, "request": told, "argv": argv}


def _kept(out: Path) -> dict[str, Any]:
    """What an earlier run in this folder wrote; nothing where there was none."""
    path = out / "result.json"
    try:
        kept = files.read_json(path) if path.exists() else {}
    except UserError:
        kept = None
    if not isinstance(kept, dict):
        raise UserError(f"{path}: not a result of didact, or a damaged one; remove it, or choose another --out")
    return kept


def _finished(out: Path, request: Request, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of an earlier run of the same command, or None if there is work to do.

    Raises:
        UserError: another run stands in the folder, or the files changed since.
    """
    kept = _kept(out)
    if request.overwrite or kept.get("status") in (None, "failed"):
        return None
    if kept.get("request") != files.plain(_who(request)["request"]):
        raise UserError(f"{out} holds another run ({kept.get('method')}): choose another --out, or --overwrite")
    for source in kept.get("data", {}).values():
        path = source["path"]
        if "sha256" in source and (_gone(path) or formats.fingerprint(path) != source["sha256"]):
            raise UserError(f"{path} changed since the run in {out}: choose another --out, or --overwrite")
    if other := inputs.changed(kept.get("inputs", {}), found):
        raise UserError(f"{other} changed since the run in {out}: choose another --out, or --overwrite")
    return kept if kept["status"] == "done" and not _damaged(out) else None


def _damaged(out: Path) -> str:
    """Which saved model of a finished run is not as it was written, and how; nothing where all are."""
    sealed = (folder for folder in sorted(out.glob("model*")) if folder.is_dir())
    return next((f"{folder}: {why}" for folder in sealed if (why := files.damage(folder))), "")


def _gone(path: str) -> bool:
    """Whether a file is not there any more; `folder:split` and hub references are looked up by their reader."""
    return not path.startswith(formats.HUB) and not any(Path(p).exists() for p in (path, path.rpartition(":")[0]) if p)


def _report(job: Job, result: Result, written: Mapping[str, str]) -> dict[str, Any]:
    request = job.request
    fit = {k: v for k, v in vars(job.fit).items() if k != "folder"} if job.entry["fit"] else {}
    shown = (
        files.plain(
            registry.flatten({n: p.default for n, p in signature(job.function) if n in _own(job)} | job.options)
        )
        | fit
    )
    options = {k: {"value": v, "from": job.provenance.get(k, "default")} for k, v in shown.items()}
    model: dict[str, Any] | None = None
    if isinstance(job.model, remote.Remote):
        model = {"path": job.model.address, "fingerprint": None, "counts": vars(job.model.counts)}
    elif job.model is not None:
        known = job.model.fingerprint() if isinstance(job.model, Model) else job.model.name  # a rule
        model = {"path": request.model or "embedded example", "fingerprint": known}
    device = str(job.model.device) if isinstance(job.model, Model) else "cpu"
    return {
        "schema": provenance.SCHEMA,
        "status": "done",
        **_who(request),
        "options": options,
        "model": model,
        "data": job.sources,
        "held_out": {k: len(v) for k, v in job.scored.items() if isinstance(v, list)},
        "metrics": result.metrics,
        "findings": result.findings,
        "cost": result.cost,
        "files": dict(written),
        "warnings": job.warnings + result.warnings,
        "joined": JOINED,
        "versions": provenance.versions(),
        "device": device,
        "dtype": request.dtype,
        "threads": torch.get_num_threads(),
        "processes": [launch.world(), launch.on_node()],  # in all, on a node
        "python": sys.version.split()[0],
        "didact_commit": provenance.commit(),
        "seed": request.seed,
    }


def _own(job: Job) -> set[str]:
    return {o["name"] for o in job.entry["options"]}


def _peak(job: Job) -> int:
    if isinstance(job.model, Model) and job.model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
