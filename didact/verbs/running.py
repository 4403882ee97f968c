"""`didact run`: train, score before and after, and write everything into one folder."""

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
from didact.verbs.job import Job, all_inputs, other_inputs, parameter_names, prepare, signature

NOT_ENDED = (
    "the start model does not end its answers: they are scored without an end token, before and after (the measures "
    "..._with_end count it)"
)
ANSWERED = 32  # records per part that are answered before and after
SHOWN = 3  # of these, samples to show
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
)  # files of a run, beside the models and result.json
JOINED = "prompt and completion by one space, unless either has white space there"
BUDGET = ("budget_calls", "budget_tokens", "parallel_calls")  # limits of a run, which do not change its identity


def run(request: Request) -> dict[str, Any]:
    """Train, score before and after, and write everything to `request.out`; return the content of result.json.

    The same command resumes from the last checkpoint after a kill, and only shows the result after the end. The message
    of an interrupt says from which step it resumes.
    """
    try:
        with distributed.peers():
            return _run(request)
    except KeyboardInterrupt as stop:
        raise type(stop)(checkpoint.resume_message(Path(request.out) / "checkpoints")) from None


def _run(request: Request) -> dict[str, Any]:
    out = Path(request.out)
    inputs.check_out(request.out, all_inputs(request))
    folders.check(out, "run")
    hashes = inputs.contents(other_inputs(request))
    if finished := _finished(out, request, hashes):
        return finished | {"again": True}
    is_writer = os.environ.get("RANK", "0") == "0"  # of several processes one writes
    with chat.dated(day := _start_day(out, request)):
        job = prepare(request)
        with folders.at_work(out, "run") if is_writer else contextlib.nullcontext():
            if is_writer and (finished := _finished(out, request, hashes)):  # another process ran it meanwhile
                return finished | {"again": True}
            torch.manual_seed(request.seed)
            if is_writer:
                job.tell()
                _begin(out, job, hashes, day)
            try:
                return _train(out, job, hashes, is_writer, day)
            except UserError:
                if is_writer:
                    with contextlib.suppress(OSError):  # the disk may be what is full
                        _write_state(out, "failed", request, hashes, day)
                raise


def _train(out: Path, job: Job, hashes: Mapping[str, Any], is_writer: bool, day: str) -> dict[str, Any]:
    start, resumed = time.monotonic(), (out / "checkpoints").exists()
    engine = _engine(job)
    scoring = _scoring(job)
    trains_model = "models" in job.entry["gives"]
    with progress.labelled("before training"):
        before = scored(job.entry, scoring.start, scoring) if scoring and trains_model else None
    model_args = {"model": job.model} if "model" in job.entry["needs"] and job.model is not None else {}
    if job.entry["fit"]:
        fit_args: dict[str, Any] = {"fit": job.fit}
    else:
        fit_args = {"seed": job.fit.seed} if "seed" in parameter_names(job.function) else {}
    with cost.metered() as meter, progress.labelled(job.request.method), engines.generating(engine):
        result: Result = job.function(**model_args, **job.train, **job.options, **fit_args, **_hooks(out, job, scoring))
    result.call, result.metrics = None, vars(result).get("metrics", {})  # the run records its own call and metrics
    model, counted = result.models.get("model"), {}
    if scoring and isinstance(model, Model):
        with progress.labelled("after training"):
            gold = scored(job.entry, scoring.gold, scoring) if scoring.gold else None
            result.metrics |= measures.metrics(before, scored(job.entry, model, scoring), gold)
            answers = _answers(job, scoring, model, result.predict)
        result.warnings += _warned(job.entry, result, [row for rows in answers.values() for row in rows])
        result.samples += [sample for rows in answers.values() for sample in rows[:SHOWN]]
        counted = {
            part: _matches(rows, scoring.with_end()) for part, rows in answers.items() if any(s["wanted"] for s in rows)
        }
    if scoring and result.predict and not trains_model:
        with progress.labelled("asked plainly"):
            procedures.add_answer_scores(job.entry, cast(Model | LM, job.model), result, scoring)
    if meter.tokens and not resumed:  # in a resumed run only the method's own count, from its checkpoint, is complete
        result.cost.tokens, result.cost.flops = meter.tokens, meter.flops
    if isinstance(job.model, remote.Remote):
        counts = job.model.counts
        result.cost.calls, result.cost.tokens = counts.calls, result.cost.tokens + counts.tokens
        result.warnings += [f"{job.model.address}: {counts}"] if counts.cached else []
        result.warnings += [f"{job.model.address}: {counts.starved:,} {replies.STARVED}"] if counts.starved else []
    if engine is not None:
        result.cost.calls += engine.counts.calls
        result.warnings += engine.notes()
    result.cost.seconds = time.monotonic() - start
    result.cost.peak_bytes = _peak_bytes(job)
    end_token = _end_token(result)
    if end_token == "not counted":
        result.warnings.append(NOT_ENDED)
    written = result.save(out) if is_writer else _join_saving(result)
    report = _report(job, result, written)
    report |= {"answered": counted, "end_token": end_token, "inputs": hashes, "began": day}
    if not is_writer:
        return report
    card.of_run(report, out)
    files.write_json(out / "samples.json", result.samples)
    files.write_json(out / "result.json", report)
    if not job.request.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return report


def _join_saving(result: Result) -> dict[str, str]:
    """Take part in saving models that are sharded over all processes, which the first process writes."""
    for model in result.models.values():
        if isinstance(model, Model) and spread.is_sharded(model.module):
            model.save(os.devnull)
    return {}


def _engine(job: Job) -> engines.Engine | None:
    """Return the engine that samples in place of the model, after checking it; None if the model samples itself."""
    request = job.request
    if not request.generate_with or not isinstance(job.model, Model):
        return None
    engine = served.by_address(
        request.generate_with, parallel=request.parallel_calls, budget_calls=request.budget_calls,
        budget_tokens=request.budget_tokens,
    )  # fmt: skip
    engine.begin(job.model, job.fit)
    return engine


def _hooks(out: Path, job: Job, scoring: Scoring | None) -> dict[str, Any]:
    """Return hooks: evaluation during training and experiment trackers, which log its scores too."""
    hooks: list[Hook] = []
    every, folder = job.request.evaluate_every, out / "checkpoints" if job.request.keep_best else None
    if every and scoring:
        rules = next(protocols.by_name(name) for name in job.entry["protocol"] if scored_by(name, scoring.records))
        brief = dataclasses.replace(scoring, brief=True)

        def evaluate(model: Model) -> dict[str, Measure]:
            return rules.score(model, brief) | own.score(brief.metrics, partial(generate.generate, model), rules, brief)

        hooks.append(watching.Watch(every, rules, evaluate, scoring.start, folder, list(scoring.metrics)))
    if job.request.track and "hooks" in parameter_names(job.function):
        hooks.append(track.tracker(job.request.track, out, {**job.options, **vars(job.fit)}))
    return {"hooks": hooks} if hooks else {}


def _scoring(job: Job) -> Scoring | None:
    """Return what the method's protocols need to score; None if it has none, or no records for them."""
    if job.model is None or not any(scored_by(name, job.scored) for name in job.entry["protocol"]):
        return None
    if not isinstance(job.model, Model) and not job.entry["answers"]:
        return None
    records = {name: rows for name, rows in job.scored.items() if name != "gold"}
    options = {n: p.default for n, p in signature(job.function) if n in _option_names(job)} | job.options
    return Scoring(
        records=records, start=cast(Model, job.model), gold=job.scored.get("gold"), seed=job.request.seed,
        options=options,
        answer=job.request.final_answer, stop=job.request.stops, general=job.general, metrics=job.metrics,
        end=None if isinstance(job.model, Model) else False,  # whether a server's model ends answers is not known
    )  # fmt: skip


def scored(entry: Mapping[str, Any], model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Return all measures of a model by a method's protocols."""
    out: dict[str, Measure] = {}
    for name in entry["protocol"]:
        if scored_by(name, scoring.records):
            out |= protocols.by_name(name).score(model, scoring)
            if name == entry["protocol"][0]:
                out |= own.score(scoring.metrics, partial(generate.generate, model), protocols.by_name(name), scoring)
    return out | scoring.general_measures(model)


def scored_by(name: str, records: Mapping[str, Any]) -> bool:
    """Whether a protocol can score a model on these records; some need none."""
    protocol = protocols.by_name(name)
    return not protocol.kind or bool(protocol.records(records))


def _answers(
    job: Job, scoring: Scoring, model: Model, predict: Callable[..., Any] | None
) -> dict[str, list[dict[str, str]]]:
    """Answer randomly drawn records of every scored part, with the model before and after."""
    protocol = next(protocols.by_name(name) for name in job.entry["protocol"] if scored_by(name, scoring.records))
    parts = {k: v for k, v in scoring.records.items() if v and k != "holdout" and hasattr(v[0], "prompt")}
    examples = [] if model.kind == "encoder" else protocols.drawn(protocol, scoring, parts, ANSWERED)
    if not examples:
        return {}
    prompts = [example.prompt for example in examples]
    complete = partial(generate.generate, stop=scoring.stop)
    sides = complete(scoring.start, prompts), (predict or partial(complete, model))(prompts)
    out: dict[str, list[dict[str, str]]] = {}
    for example, before, after in zip(examples, *sides, strict=True):
        out.setdefault(example.part, []).append({**example._asdict(), "before": before, "after": after})
    return out


def _warned(entry: Mapping[str, Any], result: Result, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return warnings on metrics and answers that better and worse do not show."""
    warnings = [text for name in entry["protocol"] for text in protocols.by_name(name).warns(result.metrics)]
    return warnings + collapse.warns([row["before"] for row in rows], [row["after"] for row in rows])


def _end_token(result: Result) -> str | None:
    """Whether the end token of answers was counted; None if no answers were scored."""
    suffixes = {name.rpartition("_with")[2] for name in result.metrics if name.endswith("_end")}
    return "counted" if "out_end" in suffixes else "not counted" if suffixes else None


def _matches(rows: Sequence[Mapping[str, str]], ended: bool) -> dict[str, int]:
    """Count answers that match their reference exactly; `ended`: nothing may follow it."""
    gold = [row for row in rows if row["wanted"]]
    correct = {
        side: sum(answer.matches(row[side], row["wanted"], ended) for row in gold) for side in ("before", "after")
    }
    return {"of": len(gold), **correct}


def _begin(out: Path, job: Job, hashes: Mapping[str, Any], day: str) -> None:
    """Mark a run as begun; remove what another run left in the folder, but keep this run's own checkpoints."""
    try:
        models = list(out.glob("model*"))
        for model in models:
            files.replaceable(model)
        last = _read_last(out)
        if last.get("status") == "done" and (damaged := _damage(out)):
            print(f"didact: {damaged}; the run is repeated", file=sys.stderr)
        if last and not (_same_run(last, job.request) and inputs.changed(last.get("inputs", {}), hashes) is None):
            for path in (*models, *(out / name for name in WRITTEN)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        files.sweep(out)
        _write_state(out, "running", job.request, hashes, day)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _write_state(out: Path, status: str, request: Request, hashes: Mapping[str, Any], day: str) -> None:
    """Write a result.json with the run's state only."""
    state = {"schema": provenance.SCHEMA, "status": status, **_identity(request), "inputs": hashes, "began": day}
    files.write_json(out / "result.json", state)


def _same_run(last: Mapping[str, Any], request: Request) -> bool:
    """Whether a folder holds the beginning of this same run."""
    same = last.get("request") == files.plain(_identity(request)["request"])
    return same and last.get("status") in ("running", "failed")


def _start_day(out: Path, request: Request) -> str:
    """Return the day the run began (an earlier one if it resumes), which its chat template may write."""
    last = _read_last(out)
    return str(last["began"]) if _same_run(last, request) and "began" in last else chat.today()


def _identity(request: Request) -> dict[str, Any]:
    """Return what makes two runs the same run."""
    excluded = (
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
    fields = {k: v for k, v in vars(request).items() if k not in excluded}
    fields["fit"] = {k: v for k, v in request.fit.items() if k not in MEMORY}
    fields |= {"generate_with": "an engine"} if request.generate_with else {}  # another address may resume
    argv = [untrusted.without_credentials(word) for word in request.argv]  # only the last of repeated flags is checked
    return {"verb": "run", "method": request.method, "preset": request.preset, "request": fields, "argv": argv}


def _read_last(out: Path) -> dict[str, Any]:
    """Read the result.json of an earlier run in this folder; empty if there was none."""
    path = out / "result.json"
    try:
        last = files.read_json(path) if path.exists() else {}
    except UserError:
        last = None
    if not isinstance(last, dict):
        raise UserError(f"{path}: not a result of didact, or a damaged one; remove it, or choose another --out")
    return last


def _finished(out: Path, request: Request, hashes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result of an earlier run of the same command, or None if there is work to do.

    Raises:
        UserError: the folder holds another run, or the files have changed.
    """
    last = _read_last(out)
    if request.overwrite or last.get("status") in (None, "failed"):
        return None
    if last.get("request") != files.plain(_identity(request)["request"]):
        raise UserError(f"{out} holds another run ({last.get('method')}): choose another --out, or --overwrite")
    for source in last.get("data", {}).values():
        path = source["path"]
        if "sha256" in source and (_is_missing(path) or formats.fingerprint(path) != source["sha256"]):
            raise UserError(f"{path} changed since the run in {out}: choose another --out, or --overwrite")
    if changed := inputs.changed(last.get("inputs", {}), hashes):
        raise UserError(f"{changed} changed since the run in {out}: choose another --out, or --overwrite")
    return last if last["status"] == "done" and not _damage(out) else None


def _damage(out: Path) -> str:
    """Return which saved model of a finished run is damaged, and how; empty if none is."""
    sealed = (folder for folder in sorted(out.glob("model*")) if folder.is_dir())
    return next((f"{folder}: {damage}" for folder in sealed if (damage := files.damage(folder))), "")


def _is_missing(path: str) -> bool:
    """Whether a file no longer exists; `folder:split` and hub references are left to their reader."""
    return not path.startswith(formats.HUB) and not any(Path(p).exists() for p in (path, path.rpartition(":")[0]) if p)


def _report(job: Job, result: Result, written: Mapping[str, str]) -> dict[str, Any]:
    request = job.request
    fit = {k: v for k, v in vars(job.fit).items() if k != "folder"} if job.entry["fit"] else {}
    values = (
        files.plain(
            registry.flatten(
                {n: p.default for n, p in signature(job.function) if n in _option_names(job)} | job.options
            )
        )
        | fit
    )
    options = {k: {"value": v, "from": job.provenance.get(k, "default")} for k, v in values.items()}
    model: dict[str, Any] | None = None
    if isinstance(job.model, remote.Remote):
        model = {"path": job.model.address, "fingerprint": None, "counts": vars(job.model.counts)}
    elif job.model is not None:
        fingerprint = job.model.fingerprint() if isinstance(job.model, Model) else job.model.name  # rule-based
        model = {"path": request.model or "embedded example", "fingerprint": fingerprint}
    device = str(job.model.device) if isinstance(job.model, Model) else "cpu"
    return {
        "schema": provenance.SCHEMA,
        "status": "done",
        **_identity(request),
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
        "processes": [launch.world(), launch.on_node()],  # in total, per node
        "python": sys.version.split()[0],
        "didact_commit": provenance.commit(),
        "seed": request.seed,
    }


def _option_names(job: Job) -> set[str]:
    return {o["name"] for o in job.entry["options"]}


def _peak_bytes(job: Job) -> int:
    if isinstance(job.model, Model) and job.model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
