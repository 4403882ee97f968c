"""`didact compare`: several methods on one model and one set of files."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from didact import catalogue, compare, files, folders, options, progress, untrusted
from didact.claims import demo
from didact.compare import work
from didact.compare.budget import Budget
from didact.data import chat, formats, general, templates
from didact.data.read import Records, read
from didact.evaluate import answers as final_answers
from didact.evaluate import judges, own, protocols
from didact.infer import functions, remote
from didact.learn import checkpoint, episodes, footprint, rates
from didact.models import adapters
from didact.models.model import Model
from didact.parallel.work import FORWARD
from didact.requests import Comparison
from didact.types import Fit, Record, UserError
from didact.verbs import card, given, inputs, opened, provenance, spreading
from didact.verbs.usable import usable

IDENTITY = (
    "budget", "seeds", "seed", "fit", "folds", "group_by", "gold", "judge", "retention", "metric", "dtype", "rename",
    "skip_bad", "chat", "turns", "max_length", "truncate", "beyond_lrs", "lora_lrs", "final_answer", "stops",
    "chat_template", "quantize", "diagnostics",
)  # fmt: skip
YAML = (".yaml", ".yml")
Arms = Sequence[compare.Arm | compare.FixedModel]
FIXED = {"lr": "--lrs are searched", "steps": "--budget decides", "epochs": "--budget decides"}


def comparison(request: Comparison) -> dict[str, Any]:
    """Run a comparison, or resume it; return the content of leaderboard.json.

    Raises:
        UserError: an arm, a file or the budget is invalid, or `out` holds another comparison.
    """
    out = Path(request.out)
    with chat.dated(day := _start_day(out, request)):
        arms, setting, identity, sources = prepare(request)
        if request.overwrite:
            with folders.at_work(out, "comparison"):
                models = list(out.glob("models/*"))
                for model in models:
                    files.replaceable(model)
                for old in (*models, *(out / name for name in ("units", "checkpoints", "track"))):
                    shutil.rmtree(old, ignore_errors=True)
                for name in ("comparison.json", "leaderboard.json", "report.html"):
                    (out / name).unlink(missing_ok=True)
        with folders.at_work(out, "comparison", shared=True):
            return _run(request, arms, setting, identity, sources, day)


def _start_day(out: Path, request: Comparison) -> str:
    """Return the day a comparison began, which its chat template may write."""
    with contextlib.suppress(FileNotFoundError, UserError, AttributeError):  # a damaged file is reported later
        if not request.overwrite and (start := files.read_json(out / "comparison.json").get("began")):
            return str(start)
    return chat.today()


def _run(
    request: Comparison, arms: Arms, setting: compare.Setting, identity: Any, sources: Any, day: str
) -> dict[str, Any]:
    out = Path(request.out)
    with folders.alone(out, "begin"):
        _begin_or_resume(out, identity, day)
    # Models as small as the example's are slower with a second thread.
    with episodes.one_thread() if not request.data else contextlib.nullcontext():
        for name, text in _plan_rows(arms, setting).items():
            print(f"{name:16} {text}", file=sys.stderr)
        try:
            worker_request, placement = dataclasses.replace(request, overwrite=False), (request.workers, request.on)
            with spreading.worker_pool(doer, worker_request, out, *placement, request.gpus_per_arm) as dispatch:
                shared = dataclasses.replace(setting, elsewhere=dispatch)
                board = compare.run(arms, shared, lambda line: print(line, file=sys.stderr, flush=True))
        except KeyboardInterrupt as stop:
            finished = len(list((out / "units").glob("*.json")))
            raise type(stop)(
                f"{finished} units are finished; {checkpoint.resume_message(out / 'checkpoints')}"
            ) from None
    board |= {
        "schema": provenance.SCHEMA, "status": "done", "verb": "compare",
        "argv": [untrusted.without_credentials(word) for word in request.argv],
        "model": request.model or (board["reference"] if request.data else "embedded example"),
        "data": sources, "identity": identity,
        "versions": provenance.versions(), "device": str(setting.model.device) if setting.model else "servers",
        "didact_commit": provenance.commit(),
    }  # fmt: skip
    files.write_json(out / "leaderboard.json", board)
    card.of_comparison(board, out, {arm.name: f"models/{work.plain_name(arm.name)}" for arm in arms})
    with contextlib.suppress(OSError):  # another process may still use it
        (out / "checkpoints").rmdir()
    return board


def doer(request: Comparison) -> spreading.Doer:
    """Prepare, in another process, for the jobs of a comparison that has begun; return the function that does one."""
    day = _start_day(Path(request.out), request)
    with chat.dated(day):
        arms, setting, _, _ = prepare(request)

    def do(job: compare.Job) -> dict[str, Any]:
        with chat.dated(day), episodes.one_thread() if not request.data else contextlib.nullcontext():
            return compare.do(arms, setting, job)

    return do


def comparison_plan(request: Comparison) -> dict[str, Any]:
    """Return what a comparison would do; everything is checked and nothing trained or written."""
    arms, setting, _, _ = prepare(request)
    return _plan_rows(arms, setting)


def _plan_rows(arms: Arms, setting: compare.Setting) -> dict[str, Any]:
    counts = compare.plan(arms, setting)
    test = setting.split(setting.tests[0][1]).test
    rows = {
        "arms": ", ".join(arm.name for arm in arms),
        "scored by": f"{setting.protocol}, on {', '.join(f'{len(r)} {n}' for n, r in test.items())}",
        "units": ", ".join(f"{count} {name}" for name, count in counts.items() if count),
    }
    if setting.whole:
        return rows
    trained, budget = counts["search"] + counts["test"], setting.budget
    return rows | {
        "budget": f"{budget.amount:g} {budget.unit} per arm and seed",
        "learning rates": " ".join(f"{rate:g}" for rate in setting.rates),
        "training in total": f"at most {budget.amount * (trained + counts['search'] * bool(setting.beyond)):g} "
        f"{budget.unit}, and two probes per arm",
    } | _time_estimate(setting, trained)  # fmt: skip


def _time_estimate(setting: compare.Setting, units: int) -> dict[str, str]:
    """Estimate how long this many units train, from one forward pass on this machine."""
    per_unit = setting.budget.amount
    if setting.budget.unit != "seconds":
        if not (rate := footprint.rate(setting.model)):
            return {}
        per_unit /= rate * (1.0 if setting.budget.unit == "tokens" else FORWARD * setting.model.parameters)
    total, single = progress.duration(units * per_unit), progress.duration(per_unit)
    return {"time": f"about {total} of training, {single} per unit; plus scoring"}


def prepare(
    request: Comparison,
) -> tuple[Arms, compare.Setting, dict[str, Any], dict[str, dict[str, Any]]]:
    """Read and check everything before any work: arms, setting, identity (must agree to resume), sources of the data.

    Raises:
        UserError: something is missing or invalid.
    """
    paths = [("--model", request.model), ("--gold", request.gold), ("--judge", request.judge)]
    paths += [("--retention", request.retention), ("--replay-from", request.fit.get("replay_from"))]
    paths += [(f"--metric {name}", name) for name in (request.metric or "").split(",")]
    paths.append(("--chat-template", request.chat_template))
    arm_files = [("arm", name) for name in request.arms if name.endswith(YAML) or given.is_model(name)]
    inputs.check_out(request.out, [*paths, *arm_files, *((f"--{name}", path) for name, path in request.data.items())])
    folders.check(request.out, "comparison")
    functions.LIMIT["seconds"] = request.function_timeout
    spreading.check(request.workers, request.on, request.gpus_per_arm, request.budget)
    metrics = own.load_metrics(request.metric)
    Fit(**request.fit)  # refuse a bad value before any work
    budget = Budget.parse(request.budget) if request.budget else None
    embedded = request.model is None and not request.data
    if embedded and (first := next(filter(given.is_model, request.arms), None)):
        raise UserError(f"{first}: to compare a model, give data of your own, as in --demo test.jsonl")
    example = demo.example() if embedded else None
    names = request.arms or (example.arms if example else ())
    model_arms = given.arms(names, request)
    arms: Arms = [model_arms.get(name) or _arm(name, example.options if example else {}) for name in names]
    models = list(model_arms.values())
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise UserError("an arm is named twice" if arms else "name the methods to compare: didact compare dpo kto ...")
    inputs.check_out(request.out, [option for arm in arms for option in _inputs(arm)])
    _check_quantized(request, arms)
    only_models = len(models) == len(arms)
    sources: dict[str, dict[str, Any]] = {}
    if example:
        model: Model | None = example.model
        records = dict(example.records)
        sources = {name: {"path": "embedded example", "records": len(rows)} for name, rows in records.items()}
    else:
        if request.model is None and not only_models:
            raise UserError("--model is required with data of your own (without both, the embedded example is run)")
        if budget is None and not only_models:
            raise UserError("--budget is required: what each arm may use, as in 20M-tokens or 90-seconds")
        if only_models and (request.budget or request.lrs or request.folds):
            raise UserError("models alone are scored and nothing is trained: leave out --budget, --lrs and --folds")
        records = _records(request, arms, sources)
        if request.model and remote.is_address(request.model):
            remote.check_address(request.model)
            raise UserError(
                f"--model {request.model}: a server, which cannot be trained: load the weights (--model DIR)"
            )
        model = opened.model(request.model, request, request.quantize) if request.model else given.start(models)
        if model is not None and request.model and adapters.adapted(model):
            print(f"{request.model} is an adapter: arms that train all weights merge it first, LoRA arms continue it",
                  file=sys.stderr)  # fmt: skip
        for name, rows in records.items():
            if model is not None:
                sources[name]["chat"] = chat.chat_choice(model.tokenizer, rows, request.chat)
            records[name] = templates.as_chat(rows, request.chat)
            if isinstance(rows, Records) and model is not None:
                records[name] = usable(records[name], rows, model, request.skip_bad)
                sources[name] |= {"records": len(records[name]), "dropped": rows.dropped}
    if only_models:
        budget, lrs = Budget(0.0, "tokens"), tuple[float, ...]()
    else:
        budget = budget or Budget.parse(example.budget if example else "")
        lrs = tuple(request.lrs) or (example.lrs if example else ()) or tuple(compare.rates_for(cast(Model, model)))
    protocol = request.protocol or protocols.for_records(records)
    by_text = bool(models) and (request.model is None or not given.alike(models, model, records))
    if by_text:
        given.check(models, protocol)
    setting = compare.Setting(
        model=cast(Model, model), records=records, protocol=protocol, budget=budget,
        seeds=range(request.seed + 1, request.seed + 1 + request.seeds), rates=lrs,
        beyond=request.beyond_lrs, answer=request.final_answer, stop=request.stops,
        adapter_rates=request.lora_lrs or (1.0 if request.lrs or example else rates.ADAPTER),
        fit={**(example.fit if example else {}), **request.fit}, folds=request.folds, group=request.group_by,
        gold=opened.model(request.gold, request) if request.gold else None,
        judge=_judge(request.judge), folder=Path(request.out), keep=not request.no_models,
        diagnostics=request.diagnostics, track=request.track,
        general=general.texts(request.retention, "keep"), metrics=metrics,
        by_text=by_text, whole=only_models, untouched=bool(request.model or example),
    )  # fmt: skip
    final_answers.checked(request.final_answer, [setting.protocol])
    compare.check(arms, setting)
    tested = [r for _, part in setting.tests for rows in setting.split(part).test.values() for r in rows]
    for arm in arms:
        fit = {**setting.fit, **(arm.fit if isinstance(arm, compare.Arm) else {})}
        if float(fit.get("replay") or 0):
            general.check_no_leak(fit.get("replay_from"), tested, setting.general)
    own.check(metrics, protocols.by_name(protocol), setting.split(setting.tests[0][1]).test)
    identity = files.plain(
        {name: getattr(request, name) for name in IDENTITY}
        | {
            "arms": [[arm.name, *_settings(arm), _sha256(_inputs(arm))] for arm in arms],
            "inputs": _sha256(paths), "model": model.fingerprint() if model else None, "rates": lrs,
            "protocol": setting.protocol, "data": {name: s.get("sha256", s["path"]) for name, s in sources.items()},
        }
    )  # fmt: skip
    return arms, setting, identity, sources


def _check_quantized(request: Comparison, arms: Arms) -> None:
    """Refuse to quantize weights that an arm would train, or without a start model.

    Raises:
        UserError: there is such an arm, or no start model.
    """
    if not request.quantize:
        return
    if request.model is None:
        raise UserError(f"--quantize {request.quantize}: goes with --model; other models are scored unquantized")
    whole = [a.name for a in arms if isinstance(a, compare.Arm) and a.trains and not a.adapter(request.fit)]
    if whole:
        raise UserError(f"--quantize {request.quantize}: quantized weights are not trained, only an adapter: "
                        f"--lora 8 ({whole[0]} has none)")  # fmt: skip


def _settings(arm: compare.Arm | compare.FixedModel) -> list[Mapping[str, Any]]:
    return [arm.options, arm.fit] if isinstance(arm, compare.Arm) else [{}, {}]


def _inputs(arm: compare.Arm | compare.FixedModel) -> list[tuple[str, str]]:
    """Return the files and folders that an arm reads, by option."""
    return inputs.of_options(arm.options) if isinstance(arm, compare.Arm) else [("arm", arm.name)]


def _sha256(paths: inputs.Named) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in inputs.contents(paths).items()}


def _records(request: Comparison, arms: Arms, sources: dict[str, dict[str, Any]]) -> dict[str, Sequence[Record]]:
    entries = [arm.entry for arm in arms if isinstance(arm, compare.Arm)] or list(catalogue.read().values())
    kinds = catalogue.kinds(entries)
    if not request.data:
        raise UserError("no data: give a file by its kind, as in --preference pairs.jsonl")
    if unknown := [name for name in request.data if name not in kinds]:
        raise UserError(f"--{unknown[0]}: none of these methods takes it; they take {', '.join(sorted(kinds))}")
    out: dict[str, Sequence[Record]] = {}
    for name, path in request.data.items():
        rows: Records[Record] = read(path, kinds[name], dict(request.rename), request.skip_bad, request.turns)
        out[name] = rows
        sources[name] = {
            "path": path,
            "sha256": formats.fingerprint(path),
            "records": len(rows),
            "dropped": rows.dropped,
        }
    return out


def _arm(name: str, defaults: Mapping[str, Mapping[str, Any]]) -> compare.Arm:
    """Parse an arm, `METHOD[:PRESET]` or a YAML file with `method:`; `defaults` are an example's options by method."""
    file_options: dict[str, Any] = {}
    if name.endswith(YAML):
        file_options = options.lines(name)
        if "method" not in file_options:
            raise UserError(f"{name}: field 'method' is missing")
        for option in FIXED.keys() & file_options:
            raise UserError(f"{name}: '{option}' is the same for every arm: {FIXED[option]}")
        method = str(file_options.pop("method"))
        label = f"{method} ({Path(name).stem})"
    else:
        method = label = name
    method, _, preset = method.partition(":")
    entry = catalogue.entry(method)
    parsed = options.parser(entry).arm(name, file_options)
    base = dict(defaults.get(method, {})) | (catalogue.preset_of(entry, preset) if preset else {})
    fit = {k.removeprefix("fit."): base.pop(k) for k in list(base) if k.startswith("fit.")}
    return compare.Arm(name=label, entry=entry, options=base | parsed.options, fit=fit | parsed.fit)


def _judge(name: str | None) -> judges.Judge | None:
    if name is None:
        return None
    if remote.is_address(name):
        return judges.LMJudge(remote.connect(name))
    return judges.by_name(name)


def _begin_or_resume(out: Path, identity: Any, day: str) -> None:
    """Begin a comparison in `out`, or resume the same one, perhaps with more arms than it had.

    Raises:
        UserError: it holds another comparison, or an arm of the same name with other options.
    """
    place = out / "comparison.json"
    arms = {arm[0]: arm for arm in identity["arms"]}
    try:
        if place.exists():
            try:
                saved = files.read_json(place)
                saved_arms = {arm[0]: arm for arm in saved["arms"]}
            except (UserError, LookupError, TypeError):
                raise UserError(f"{place}: damaged: put it back as it was, or start over with --overwrite") from None
            changed = [k for k, v in identity.items() if k != "arms" and saved.get(k) != v]
            changed += [name for name, arm in arms.items() if saved_arms.get(name, arm) != arm]
            if changed:
                reason = f"{', '.join(changed)} differ"
                raise UserError(f"{out} holds another comparison ({reason}): choose another --out, or --overwrite")
            arms = saved_arms | arms
        elif any((out / "units").glob("*.json")):
            raise UserError(f"{out}: has units and no comparison.json: start over with --overwrite")
        files.write_json(place, identity | {"arms": list(arms.values()), "began": day})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
