"""What the command line does: teach, score, try. Each verb takes plain values and returns plain values."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from didact import catalogue, files, options
from didact.claims import compare, runner
from didact.claims.problem import Problem
from didact.data import encode, formats, templates
from didact.data.read import read
from didact.evaluate import forget as forgetting
from didact.evaluate import judges, protocols
from didact.infer import generate, guide, remote
from didact.infer import lm as language_models
from didact.learn import track
from didact.models import cost, forward, load
from didact.models.model import Model
from didact.options import Request
from didact.types import RECORDS, Fit, Metric, Record, Result, Text, UserError, as_row

SCHEMA = 1
SAMPLES = 6  # answers shown before and after
JOINED = "prompt and completion by one space, unless either has white space there"
BUDGET = ("budget_calls", "budget_tokens")  # what a run may use does not change what it is
FEWEST = 10  # records below which none is held out


@dataclass
class Job:
    """A request with its files read and its model loaded: ready to run, or to be looked at with --dry-run."""

    request: Request
    entry: Mapping[str, Any]
    function: Any
    model: Model | remote.Remote | None
    train: dict[str, Sequence[Record]]
    scored: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    options: dict[str, Any]
    fit: Fit
    provenance: dict[str, str]
    warnings: list[str]
    embedded: bool


def prepare(request: Request) -> Job:
    """Read everything a run needs and check it, before any work.

    Raises:
        UserError: an input is missing or wrong.
    """
    entry = catalogue.entry(request.method)
    function = getattr(importlib.import_module(entry["module"]), entry["function"])
    preset = dict(entry["presets"].get(request.preset, {})) if request.preset else {}
    if request.preset and request.preset not in entry["presets"]:
        raise UserError(
            f"unknown preset '{request.preset}' of {request.method}: {', '.join(entry['presets']) or 'none'}"
        )
    embedded = request.model is None and not request.data
    if embedded and entry["baseline"]:
        raise UserError(f"{request.method} has no embedded example; give it a model and data: {_needed(entry)}")
    default = next((p.default for n, p in _signature(function) if n == "fit"), Fit())
    preset_fit = {k.removeprefix("fit."): preset.pop(k) for k in list(preset) if k.startswith("fit.")}
    default.replace(**{**preset_fit, **request.fit})  # a bad value is told before the example is made
    problem = _problem(request.method, request.seed) if embedded else Problem()
    provenance = dict.fromkeys((*problem.options, *problem.fit), "example")
    provenance |= dict.fromkeys((*preset, *preset_fit), f"preset {request.preset}") | request.provenance
    options = {**problem.options, **preset, **request.options}
    folder = {"folder": str(Path(request.out) / "checkpoints"), "seed": request.seed}
    fit = default.replace(**{**problem.fit, **preset_fit, **request.fit, **folder})
    model: Model | remote.Remote | None = problem.model
    records: dict[str, Sequence[Record]] = dict(problem.data)
    sources: dict[str, dict[str, Any]] = {
        k: {"path": "embedded example", "records": len(v)} for k, v in records.items()
    }
    if not embedded:
        model, records, sources = _inputs(request, entry)
    train, scored, warnings = _held_out(entry, records, request, problem)
    return Job(request, entry, function, model, train, scored, sources, options, fit, provenance, warnings, embedded)


def run(request: Request) -> dict[str, Any]:
    """Teach, score before and after, and write everything to `request.out`; returns what result.json holds.

    The same command after a kill resumes from the last checkpoint; after the end it only shows the result.
    """
    out = Path(request.out)
    done = _finished(out, request)
    if done:
        return done | {"again": True}
    job = prepare(request)
    torch.manual_seed(request.seed)
    _begin(out, job)
    try:
        return _taught(out, job)
    except UserError:
        with contextlib.suppress(OSError):  # the disk may be what is full
            files.write_json(out / "result.json", {"schema": SCHEMA, "status": "failed", **_who(request)})
        raise


def _taught(out: Path, job: Job) -> dict[str, Any]:
    began, resumed = time.monotonic(), (out / "checkpoints").exists()
    before = _score(job, job.model) if isinstance(job.model, Model) and _speaks(job) else None
    given = {"model": job.model} if "model" in job.entry["needs"] and job.model is not None else {}
    trained = {"fit": job.fit} if job.entry["fit"] else {"seed": job.fit.seed} if "seed" in _takes(job.function) else {}
    with cost.metered() as meter:
        result: Result = job.function(**given, **job.train, **job.options, **trained, **_hooks(out, job))
    taught = result.models.get("model")
    if isinstance(taught, Model) and _speaks(job):
        after = _score(job, taught)
        gold = _score(job, job.scored["gold"]) if "gold" in job.scored else None
        result.metrics |= protocols.compare(before, after, gold)
        result.samples += _samples(job, taught, result.predict)
    if meter.tokens and not resumed:  # of a resumed run only the method's own count, from its checkpoint, is whole
        result.cost.tokens, result.cost.flops = meter.tokens, meter.flops
    if isinstance(job.model, remote.Remote):
        counts = job.model.counts
        result.cost.calls, result.cost.tokens = counts.calls, result.cost.tokens + counts.tokens
        result.warnings += [f"{job.model.address}: {counts}"] if counts.cached else []
    result.cost.seconds = time.monotonic() - began
    result.cost.peak_bytes = _peak(job)
    written = result.save(out)
    report = _report(job, result, written)
    files.write_json(out / "samples.json", result.samples)
    files.write_json(out / "result.json", report)
    return report


def _hooks(out: Path, job: Job) -> dict[str, Any]:
    """Trackers the user asked for, where the method trains."""
    tool = job.request.track
    if tool is None or "hooks" not in _takes(job.function):
        return {}
    return {"hooks": [track.tracker(tool, out, {**job.options, **vars(job.fit)})]}


def dry_run(request: Request) -> dict[str, Any]:
    """What a run would take: memory, steps, truncated rows; nothing is trained or written."""
    job = prepare(request)
    first = next(iter(job.train.values()), ())
    shown: dict[str, Any] = {"method": request.method, "options": job.options}
    if job.entry["fit"]:
        shown["steps"] = _steps(job, first)
    shown["records"] = {name: len(rows) for name, rows in job.train.items()}
    if not isinstance(job.model, Model):
        return shown
    model, item = job.model, next(job.model.module.parameters()).element_size()
    trained = model.parameters
    if job.fit.lora:  # rank times (inputs + outputs) of every matrix, at most
        trained = sum(job.fit.lora * sum(p.shape) for p in model.module.parameters() if p.dim() == 2)
    moments = {"adamw": 2, "adam": 2, "sgd": 0, "adafactor": 0}[job.fit.optimizer]
    width = getattr(model.config, "vocab_size", 0)
    pairs = {name: list(_texts(rows)) for name, rows in job.train.items()}
    longest = max((n for p in pairs.values() for n in encode.sizes(model.tokenizer, p)), default=0)
    micro = max(job.fit.micro_tokens or forward.at_once(model), longest)
    hidden = getattr(model.config, "hidden_size", 0) * getattr(model.config, "num_hidden_layers", 1)
    activations = item * micro * (16 * hidden + 3 * min(width, 1 << 24))
    memory = {
        "weights": 2 * item * model.parameters,  # the model as it came, and the one that is taught
        "gradients_and_moments": int(item * trained * (1 + moments)),
        "activations_at_most": activations,
    }
    truncated = {name: encode.truncated(model.tokenizer, p, model.context) for name, p in pairs.items()}
    lengths = {"truncated_rows": truncated, "longest_record_tokens": longest, "context": model.context}
    return shown | {"memory_bytes": memory} | lengths


def _steps(job: Job, records: Sequence[Any]) -> str:
    """How many, and what that rests on where the method itself decides what a row is."""
    if job.fit.steps is not None:
        return str(job.fit.steps)
    rows, told = len(records), "a row a record"
    if records and isinstance(records[0], Text) and isinstance(job.model, Model):
        tokens = sum(len(job.model.tokenizer(r.text)["input_ids"]) + 1 for r in records if isinstance(r, Text))
        rows, told = -(-tokens // job.model.context), f"{tokens} tokens in rows as long as the context"
    rounds = ", in each round" if "rounds" in job.options else ""
    return f"{job.fit.total_steps(rows)} (if the method makes {told}{rounds})"


def evaluate(folder: str, data: str, protocol: str, **more: Any) -> dict[str, Metric]:
    """Score a saved model on a file; beside it the start model's numbers where the run is known."""
    model, start = _saved(folder, more.get("device"))
    kind = {"answer": "demo", "forget": "demo", "prefer": "preference", "text": "text"}[protocol]
    records: Any = read(data, kind, more.get("rename"), bool(more.get("skip_bad")))
    score: Any = getattr(protocols, protocol)
    before = score(start, records) if start is not None else None
    return protocols.compare(before, score(model, records))


def answers(
    folder: str, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, device: str | None = None
) -> list[dict[str, str]]:
    """Answers of a saved model and of the model it was taught from, side by side."""
    model, start = _saved(folder, device)
    how = generate.How(max_new_tokens=max_new_tokens, temperature=temperature)
    guided = _guided(folder, model, start)
    after = [row[0].text for row in generate.completions(guided[0], prompts, 1, how, processors=guided[1])]
    before = (
        generate.generate(start, prompts, max_new_tokens, temperature) if start is not None else [""] * len(prompts)
    )
    return [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]


def claim(
    method: str, tier: runner.Tier, sabotage: bool, scoreboard: str = "scoreboard", folder: str | None = None
) -> dict[str, Any]:
    """Test a paper's claim; quick and full tiers are written to the scoreboard."""
    catalogue.entry(method)
    card = runner.run(runner.load(method), tier, sabotage, folder)
    if tier != "smoke":
        runner.write(card, scoreboard)
    return card


def comparison(
    names: Sequence[str],
    model: str,
    data: Mapping[str, str],
    *,
    budget: str,
    out: str,
    seeds: int = 5,
    lrs: Sequence[float] = (),
    folds: int = 0,
    gold: str | None = None,
    judge: str | None = None,
    protocol: compare.Protocol | None = None,
    keep: bool = True,
    device: str | None = None,
    dtype: str = "float32",
    rename: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    argv: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare methods on the user's model and data; everything is kept in `out`, where a stopped one goes on.

    Args:
        names: arms, `METHOD[:PRESET]` or a YAML file with `method:` and options.
        model: where all arms start.
        data: files by record kind or by parameter (`forget`, `retain`).
        budget: what each arm may use, `20M-tokens`, `1e15-flops` or `90-seconds`.
        out: the folder.
        seeds: how many test seeds.
        lrs: learning rates every arm is tuned over; a grid by the model's size where none are given.
        folds: cross-validation in place of one split, seed k on fold k.
        gold: a model that never saw what must be forgotten.
        judge: `module:function`, a reward model's folder, or `http://host/v1#name`.
        protocol: how arms are scored; by the records where not given.
        keep: save the taught model of every arm's first seed.
        device: cpu, cuda, ...
        dtype: of the weights.
        rename: fields of the files.
        skip_bad: drop bad lines.
        argv: the command line, shown on the page.

    Raises:
        UserError: an arm, a file or the budget is wrong, or `out` holds another comparison.
    """
    arms = [_arm(name) for name in names]
    if len({arm.name for arm in arms}) < len(arms):
        raise UserError("an arm is named twice")
    allowed = compare.Budget.parse(budget)
    kinds = {p: need["kind"] for arm in arms for p, need in arm.entry["needs"].items()} | {k: k for k in RECORDS}
    records = {name: read(path, kinds[name], dict(rename or {}), skip_bad) for name, path in data.items()}
    if not records:
        raise UserError("no data: give a file by its kind, as in --preference pairs.jsonl")
    start = load.load(model, device, dtype)
    how = protocol or compare.protocol_for(records)
    setting = compare.Setting(
        model=start, records=records, protocol=how, budget=allowed,
        seeds=range(1, seeds + 1), rates=tuple(lrs) or tuple(compare.rates(start)), folds=folds,
        gold=load.load(gold, device, dtype) if gold else None, judge=_judge(judge), folder=Path(out), keep=keep,
    )  # fmt: skip
    identity = files.plain(
        {
            "arms": [[arm.name, arm.options, arm.fit] for arm in arms], "model": load.fingerprint(start),
            "data": {name: _sha256(path) for name, path in data.items()}, "budget": budget, "seeds": seeds,
            "rates": setting.rates, "folds": folds, "gold": gold, "judge": judge, "protocol": how, "dtype": dtype,
            "map": dict(rename or {}), "skip_bad": skip_bad,
        }
    )  # fmt: skip
    _same_comparison(Path(out), identity)
    board = compare.run(arms, setting, lambda line: print(line, file=sys.stderr, flush=True))
    sources = {n: {"path": p, "sha256": _sha256(p), "records": len(records[n])} for n, p in data.items()}
    board |= {"schema": SCHEMA, "status": "done", "verb": "compare", "argv": list(argv), "model": model}
    board |= {
        "data": sources,
        "identity": identity,
        "versions": _versions(),
        "device": str(start.device),
        "didact_commit": _commit(),
    }
    files.write_json(Path(out) / "leaderboard.json", board)
    return board


def _arm(name: str) -> compare.Arm:
    """An arm from `METHOD[:PRESET]` or a YAML file that names its method."""
    import yaml

    words: list[str] = []
    if name.endswith((".yaml", ".yml")):
        try:
            told = yaml.safe_load(Path(name).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{name}: cannot be read as YAML: {error}") from None
        if not isinstance(told, dict) or "method" not in told:
            raise UserError(f"{name}: field 'method' is missing")
        method = str(told.pop("method"))
        words = [f"--{str(k).replace('_', '-')}={v}" for k, v in told.items()]
        label = f"{method} ({Path(name).stem})"
    else:
        method = label = name
    method, _, preset = method.partition(":")
    entry = catalogue.entry(method)
    if preset and preset not in entry["presets"]:
        raise UserError(f"unknown preset '{preset}' of {method}: {', '.join(entry['presets']) or 'none'}")
    given = options.parser(entry).parse(words, preset or None)
    changed = dict(entry["presets"].get(given.preset or "", {}))
    fit = {k.removeprefix("fit."): changed.pop(k) for k in list(changed) if k.startswith("fit.")}
    return compare.Arm(name=label, entry=entry, options=changed | given.options, fit=fit | given.fit)


def _judge(name: str | None) -> judges.Judge | None:
    if name is None:
        return None
    if remote.is_address(name):
        return judges.Asked(remote.connect(name))
    return judges.named(name)


def _same_comparison(out: Path, identity: Any) -> None:
    """Begin a comparison in `out`, or go on with the same one, perhaps with other arms beside those it had.

    Raises:
        UserError: another comparison stands there, or an arm of the same name with other options.
    """
    place = out / "comparison.json"
    arms = {arm[0]: arm for arm in identity["arms"]}
    try:
        if place.exists():
            kept = files.read_json(place)
            known = {arm[0]: arm for arm in kept["arms"]}
            changed = [k for k, v in identity.items() if k != "arms" and kept.get(k) != v]
            changed += [name for name, arm in arms.items() if known.get(name, arm) != arm]
            if changed:
                raise UserError(f"{out} holds another comparison ({', '.join(changed)} differ): choose another --out")
            arms = known | arms
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(place, identity | {"arms": list(arms.values())})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _problem(method: str, seed: int) -> Problem:
    """The method's embedded example; a variant `slug.name` has its own in the paper's claim module."""
    slug, _, variant = method.partition(".")
    module = importlib.import_module(f"didact.claims.{catalogue.entry(method)['family']}.{slug.replace('-', '_')}")
    made: Problem = getattr(module, f"problem_{variant.replace('-', '_')}" if variant else "problem")(seed)
    return made


def _inputs(
    request: Request, entry: Mapping[str, Any]
) -> tuple[Model | remote.Remote | None, dict[str, Sequence[Record]], dict[str, dict[str, Any]]]:
    """The model and records the user named."""
    for name, need in entry["needs"].items():
        given = request.model if need["kind"] == "model" else request.data.get(name)
        if need["required"] and not given:
            raise UserError(f"{request.method} needs --{name.replace('_', '-')} ({need['kind']}): {_needed(entry)}")
    served = _served(request, entry)  # first: what a server lacks is told before any work
    records: dict[str, Sequence[Record]] = {}
    sources = {}
    for name, path in request.data.items():
        rows = read(path, entry["needs"][name]["kind"], request.rename, request.skip_bad)
        records[name] = rows
        sources[name] = {"path": path, "sha256": _sha256(path), "records": len(rows), "dropped": rows.dropped}
    model = served or (load.load(request.model, request.device, request.dtype) if request.model else None)
    if isinstance(model, Model) and model.processor is not None:
        for name in records:
            sources[name]["chat"] = encode.chat_choice(model.processor, records[name], request.chat)
            records[name] = templates.as_chat(records[name], request.chat)
    if served is not None:
        records = {name: templates.as_chat(rows, request.chat) for name, rows in records.items()}
    return model, records, sources


def _served(request: Request, entry: Mapping[str, Any]) -> remote.Remote | None:
    """The server the user named as the model, which can do what the method needs; None where none was named."""
    if not request.model or not remote.is_address(request.model):
        return None
    served = remote.connect(request.model, budget_calls=request.budget_calls, budget_tokens=request.budget_tokens)
    language_models.need(served, *entry["capabilities"], by=request.method)
    return served


def _held_out(
    entry: Mapping[str, Any], records: Mapping[str, Sequence[Record]], request: Request, problem: Problem
) -> tuple[dict[str, Sequence[Record]], dict[str, Any], list[str]]:
    """Training records, and records for scoring that training does not see (chosen by hash)."""
    train, protocol, warnings = dict(records), entry["protocol"], []
    scored: dict[str, Any] = dict(problem.protocol)
    if request.gold:
        scored["gold"] = load.load(request.gold, request.device, request.dtype)
    name = {"forget": "retain", "answer": "demos", "prefer": "preferences"}.get(protocol or "")
    if name and name not in scored and name in train:
        rows = train[name]
        if request.holdout > 0 and len(rows) >= FEWEST:
            order = sorted(range(len(rows)), key=lambda i: _digest(rows[i]))
            out = set(order[: max(1, round(request.holdout * len(rows)))])
            train[name] = [r for i, r in enumerate(rows) if i not in out]
            scored[name] = [r for i, r in enumerate(rows) if i in out]
        else:
            scored[name] = rows
            warnings.append(
                f"{name}: scored on the records it was taught, which flatters it (--holdout 0.2 keeps some apart)"
            )
    if protocol == "forget" and "forget" in train:
        scored["forget"] = train["forget"]
    return train, scored, warnings


def _digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(files.plain(as_row(record)), sort_keys=True).encode()).hexdigest()


def _score(job: Job, model: Model) -> dict[str, protocols.Measure]:
    scored = job.scored
    if job.entry["protocol"] == "forget":
        gold = scored.get("gold")
        if gold is not None and "gold_ratios" not in scored and forgetting.has_truth(scored["forget"]):
            scored["gold_ratios"] = forgetting.truth_ratios(gold, scored["forget"])
        return protocols.forget(
            model, scored["forget"], scored.get("retain"), scored.get("holdout"), scored.get("gold_ratios")
        )
    if job.entry["protocol"] == "prefer":
        return protocols.prefer(model, scored["preferences"])
    return protocols.answer(model, scored["demos"])


def _speaks(job: Job) -> bool:
    """Whether there are records to score answers on."""
    wanted = {"answer": "demos", "prefer": "preferences", "forget": "forget"}.get(job.entry["protocol"] or "")
    return wanted in job.scored


def _samples(job: Job, taught: Model, predict: Callable[..., Any] | None) -> list[dict[str, str]]:
    """Answers before and after: some of every part that is scored. A method that predicts answers by itself."""
    assert isinstance(job.model, Model)
    parts = {k: v for k, v in job.scored.items() if k in ("forget", "retain", "demos", "preferences") and v}
    each = SAMPLES // max(1, len(parts))
    rows = [(name, r) for name, part in parts.items() for r in part[:each]]
    prompts = [r.prompt for _, r in rows]
    before, after = generate.generate(job.model, prompts), (predict or partial(generate.generate, taught))(prompts)
    wanted = [getattr(r, "completion", None) or r.chosen for _, r in rows]
    return [
        {"part": name, "prompt": r.prompt, "wanted": w, "before": b, "after": a}
        for (name, r), w, b, a in zip(rows, wanted, before, after, strict=True)
    ]


def _begin(out: Path, job: Job) -> None:
    """Say that a run is under way; what another run left in the folder goes, its own checkpoints stay."""
    who = _who(job.request)
    try:
        kept = _kept(out)
        mine = kept.get("request") == files.plain(who["request"]) and kept.get("status") in ("running", "failed")
        if kept and not mine:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        files.sweep(out)
        files.write_json(out / "result.json", {"schema": SCHEMA, "status": "running", **who})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _who(request: Request) -> dict[str, Any]:
    """What makes two runs the same run."""
    how = ("argv", "overwrite", "track", "provenance", "out", "device", "dry_run", "print_config", *BUDGET)
    told = {k: v for k, v in vars(request).items() if k not in how}
    return {"verb": "run", "method": request.method, "preset": request.preset, "request": told, "argv": request.argv}


def _kept(out: Path) -> dict[str, Any]:
    """What an earlier run in this folder wrote; nothing where there was none."""
    path = out / "result.json"
    try:
        kept = files.read_json(path) if path.exists() else {}
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        raise UserError(f"{path}: not a result of didact; choose another --out")
    return kept


def _finished(out: Path, request: Request) -> dict[str, Any] | None:
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
        if "sha256" in source and (_gone(path) or _sha256(path) != source["sha256"]):
            raise UserError(f"{path} changed since the run in {out}: choose another --out, or --overwrite")
    return kept if kept["status"] == "done" else None


def _gone(path: str) -> bool:
    """Whether a file is not there any more; `folder:split` and hub references are looked up by their reader."""
    return not path.startswith(formats.HUB) and not any(Path(p).exists() for p in (path, path.rpartition(":")[0]) if p)


def _sha256(path: str) -> str:
    return formats.fingerprint(path)


def _report(job: Job, result: Result, written: Mapping[str, str]) -> dict[str, Any]:
    request = job.request
    fit = {k: v for k, v in vars(job.fit).items() if k != "folder"} if job.entry["fit"] else {}
    signature = {n: p.default for n, p in _signature(job.function)}
    shown = {o["name"]: job.options.get(o["name"], signature[o["name"]]) for o in job.entry["options"]} | fit
    options = {k: {"value": v, "from": job.provenance.get(k, "default")} for k, v in shown.items()}
    model: dict[str, Any] | None = None
    if isinstance(job.model, remote.Remote):
        model = {"path": job.model.address, "fingerprint": None, "counts": vars(job.model.counts)}
    elif job.model is not None:
        model = {"path": request.model or "embedded example", "fingerprint": load.fingerprint(job.model)}
    device = str(job.model.device) if isinstance(job.model, Model) else "cpu"
    return {
        "schema": SCHEMA,
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
        "versions": _versions(),
        "device": device,
        "dtype": request.dtype,
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "didact_commit": _commit(),
        "seed": request.seed,
    }


def _saved(folder: str, device: str | None) -> tuple[Model, Model | None]:
    """A saved model, and the one it was taught from where result.json names it."""
    root = Path(folder)
    place = root / "model" if (root / "model").is_dir() else root
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a run, or a model folder")
    model = load.load(place, device)
    kept = files.read_json(root / "result.json") if (root / "result.json").exists() else {}
    start = (kept.get("model") or {}).get("path")
    if start == "embedded example":
        return model, _problem(kept["method"], kept["seed"]).model
    if start is None or not Path(start).exists():
        return model, None
    return model, load.load(start, device)


def _guided(folder: str, model: Model, start: Model | None) -> tuple[Model, list[guide.GuidedDecoder]]:
    """Who answers: the saved model, or where it is a reward model the start model, guided by it."""
    place = Path(folder) / "result.json"
    told = files.read_json(place).get("findings", {}).get("guided") if place.exists() else None
    if told is None:
        return model, []
    if start is None:
        raise UserError(f"{folder}: holds a reward model, which guides the start model, and that is not there any more")
    further = [load.load(other, str(start.device)) for other in told["others"]]
    guides = list(zip([model, *further], told["alphas"], strict=True))
    return start, [guide.GuidedDecoder(start, guides, told["normalize"])]


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("didact", "torch", "transformers", "peft", "numpy")}


def _signature(function: Any) -> list[tuple[str, Any]]:
    return list(inspect.signature(function).parameters.items())


def _takes(function: Any) -> set[str]:
    return {n for n, _ in _signature(function)}


def _needed(entry: Mapping[str, Any]) -> str:
    wanted = {n: v["kind"] for n, v in entry["needs"].items() if v["required"]}
    words = [f"--{n.replace('_', '-')} {'DIR' if k == 'model' else n.upper() + '.jsonl'}" for n, k in wanted.items()]
    return " ".join(["didact run", entry["name"], *words])


def _texts(rows: Sequence[Any]) -> list[tuple[str, str]]:
    """Prompts with each of their completions."""
    spoken = [r for r in rows if hasattr(r, "prompt")]
    sides = [(r.completion,) if hasattr(r, "completion") else (r.chosen, r.rejected) for r in spoken]
    return [(r.prompt, side) for r, both in zip(spoken, sides, strict=True) for side in both]


def _peak(job: Job) -> int:
    if isinstance(job.model, Model) and job.model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _commit() -> str | None:
    here = str(Path(__file__).parent)
    asked = ["git", "-C", here, "rev-parse", "--short", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


__all__ = ["answers", "claim", "comparison", "dry_run", "evaluate", "prepare", "run"]
