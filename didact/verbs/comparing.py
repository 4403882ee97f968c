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
Arms = Sequence[compare.Arm | compare.Given]
ALIKE = {"lr": "--lrs are searched", "steps": "--budget decides", "epochs": "--budget decides"}


def comparison(request: Comparison) -> dict[str, Any]:
    """Run it, or go on with it; returns what leaderboard.json holds.

    Raises:
        UserError: an arm, a file or the budget is wrong, or `out` holds another comparison.
    """
    out = Path(request.out)
    with chat.dated(day := _day(out, request)):
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
            return _compared(request, arms, setting, identity, sources, day)


def _day(out: Path, request: Comparison) -> str:
    """When a comparison began, which is what its chat template may write."""
    with contextlib.suppress(FileNotFoundError, UserError, AttributeError):  # what is damaged is told later
        if not request.overwrite and (began := files.read_json(out / "comparison.json").get("began")):
            return str(began)
    return chat.today()


def _compared(
    request: Comparison, arms: Arms, setting: compare.Setting, identity: Any, sources: Any, day: str
) -> dict[str, Any]:
    out = Path(request.out)
    with folders.alone(out, "begin"):
        _same_comparison(out, identity, day)
    # Models as small as the example's lose by a second thread.
    with episodes.one_thread() if not request.data else contextlib.nullcontext():
        for name, told in _planned(arms, setting).items():
            print(f"{name:16} {told}", file=sys.stderr)
        try:
            asked, how = dataclasses.replace(request, overwrite=False), (request.workers, request.on)
            with spreading.elsewhere(doer, asked, out, *how, request.gpus_per_arm) as others:
                shared = dataclasses.replace(setting, elsewhere=others)
                board = compare.run(arms, shared, lambda line: print(line, file=sys.stderr, flush=True))
        except KeyboardInterrupt as stop:
            kept = len(list((out / "units").glob("*.json")))
            raise type(stop)(f"{kept} units are kept; {checkpoint.told(out / 'checkpoints')}") from None
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
    with contextlib.suppress(OSError):  # another process may be at work there
        (out / "checkpoints").rmdir()
    return board


def doer(request: Comparison) -> spreading.Doer:
    """Make ready, in another process, for the jobs of a comparison that was begun."""
    day = _day(Path(request.out), request)
    with chat.dated(day):
        arms, setting, _, _ = prepare(request)

    def do(job: compare.Job) -> dict[str, Any]:
        with chat.dated(day), episodes.one_thread() if not request.data else contextlib.nullcontext():
            return compare.do(arms, setting, job)

    return do


def comparison_plan(request: Comparison) -> dict[str, Any]:
    """What a comparison would do, with everything checked and nothing trained or written."""
    arms, setting, _, _ = prepare(request)
    return _planned(arms, setting)


def _planned(arms: Arms, setting: compare.Setting) -> dict[str, Any]:
    counts = compare.plan(arms, setting)
    test = setting.split(setting.tests[0][1]).test
    shown = {
        "arms": ", ".join(arm.name for arm in arms),
        "scored by": f"{setting.protocol}, on {', '.join(f'{len(r)} {n}' for n, r in test.items())}",
        "units": ", ".join(f"{count} {name}" for name, count in counts.items() if count),
    }
    if setting.whole:
        return shown
    trained, budget = counts["search"] + counts["test"], setting.budget
    return shown | {
        "budget": f"{budget.amount:g} {budget.unit} an arm and seed",
        "learning rates": " ".join(f"{rate:g}" for rate in setting.rates),
        "trained in all": f"at most {budget.amount * (trained + counts['search'] * bool(setting.beyond)):g} "
        f"{budget.unit}, and two probes an arm",
    } | _time(setting, trained)  # fmt: skip


def _time(setting: compare.Setting, units: int) -> dict[str, str]:
    """About how long so many units train, by one forward pass here and now."""
    each = setting.budget.amount
    if setting.budget.unit != "seconds":
        if not (rate := footprint.rate(setting.model)):
            return {}
        each /= rate * (1.0 if setting.budget.unit == "tokens" else FORWARD * setting.model.parameters)
    whole, one = progress.duration(units * each), progress.duration(each)
    return {"time": f"about {whole} of training, {one} a unit; and scoring"}


def prepare(
    request: Comparison,
) -> tuple[Arms, compare.Setting, dict[str, Any], dict[str, dict[str, Any]]]:
    """Everything read and checked before any work: arms, setting, what a stopped comparison must agree in, sources.

    Raises:
        UserError: something is missing or wrong.
    """
    used = [("--model", request.model), ("--gold", request.gold), ("--judge", request.judge)]
    used += [("--retention", request.retention), ("--replay-from", request.fit.get("replay_from"))]
    used += [(f"--metric {name}", name) for name in (request.metric or "").split(",")]
    used.append(("--chat-template", request.chat_template))
    written = [("arm", name) for name in request.arms if name.endswith(YAML) or given.named(name)]
    inputs.check_apart(request.out, [*used, *written, *((f"--{name}", path) for name, path in request.data.items())])
    folders.check(request.out, "comparison")
    functions.LIMIT["seconds"] = request.function_timeout
    spreading.check(request.workers, request.on, request.gpus_per_arm, request.budget)
    metrics = own.named(request.metric)
    Fit(**request.fit)  # a bad value is told before any work
    budget = Budget.parse(request.budget) if request.budget else None
    embedded = request.model is None and not request.data
    if embedded and (first := next(filter(given.named, request.arms), None)):
        raise UserError(f"{first}: a model is compared on data of your own, as in --demo test.jsonl")
    example = demo.example() if embedded else None
    names = request.arms or (example.arms if example else ())
    known = given.arms(names, request)
    arms: Arms = [known.get(name) or _arm(name, example.options if example else {}) for name in names]
    models = list(known.values())
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise UserError("an arm is named twice" if arms else "name the methods to compare: didact compare dpo kto ...")
    inputs.check_apart(request.out, [option for arm in arms for option in _inputs(arm)])
    _check_quantized(request, arms)
    whole = len(models) == len(arms)
    sources: dict[str, dict[str, Any]] = {}
    if example:
        model: Model | None = example.model
        records = dict(example.records)
        sources = {name: {"path": "embedded example", "records": len(rows)} for name, rows in records.items()}
    else:
        if request.model is None and not whole:
            raise UserError("--model is required with data of your own (without both, the embedded example is run)")
        if budget is None and not whole:
            raise UserError("--budget is required: what each arm may use, as in 20M-tokens or 90-seconds")
        if whole and (request.budget or request.lrs or request.folds):
            raise UserError("models are compared as they are: no --budget, --lrs or --folds, for nothing is trained")
        records = _records(request, arms, sources)
        if request.model and remote.is_address(request.model):
            remote.check_address(request.model)
            raise UserError(
                f"--model {request.model}: a server, which cannot be trained: load the weights (--model DIR)"
            )
        model = opened.model(request.model, request, request.quantize) if request.model else given.start(models)
        if model is not None and request.model and adapters.adapted(model):
            print(f"{request.model}: an adapter: merged for arms that train all weights; LoRA goes on with it",
                  file=sys.stderr)  # fmt: skip
        for name, rows in records.items():
            if model is not None:
                sources[name]["chat"] = chat.chat_choice(model.tokenizer, rows, request.chat)
            records[name] = templates.as_chat(rows, request.chat)
            if isinstance(rows, Records) and model is not None:
                records[name] = usable(records[name], rows, model, request.skip_bad)
                sources[name] |= {"records": len(records[name]), "dropped": rows.dropped}
    if whole:
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
        by_text=by_text, whole=whole, untouched=bool(request.model or example),
    )  # fmt: skip
    final_answers.checked(request.final_answer, [setting.protocol])
    compare.check(arms, setting)
    tested = [r for _, part in setting.tests for rows in setting.split(part).test.values() for r in rows]
    for arm in arms:
        fit = {**setting.fit, **(arm.fit if isinstance(arm, compare.Arm) else {})}
        if float(fit.get("replay") or 0):
            general.apart(fit.get("replay_from"), tested, setting.general)
    own.check(metrics, protocols.named(protocol), setting.split(setting.tests[0][1]).test)
    identity = files.plain(
        {name: getattr(request, name) for name in IDENTITY}
        | {
            "arms": [[arm.name, *_told(arm), _sha256(_inputs(arm))] for arm in arms],
            "inputs": _sha256(used), "model": model.fingerprint() if model else None, "rates": lrs,
            "protocol": setting.protocol, "data": {name: s.get("sha256", s["path"]) for name, s in sources.items()},
        }
    )  # fmt: skip
    return arms, setting, identity, sources


def _check_quantized(request: Comparison, arms: Arms) -> None:
    """Refuse to hold weights in fewer bits that an arm would train, or that are scored as they are.

    Raises:
        UserError: there is one.
    """
    if not request.quantize:
        return
    if request.model is None:
        raise UserError(f"--quantize {request.quantize}: it is --model that is held so; others are scored as they are")
    whole = [a.name for a in arms if isinstance(a, compare.Arm) and a.trains and not a.adapter(request.fit)]
    if whole:
        raise UserError(f"--quantize {request.quantize}: such weights are not trained, an adapter on them is: --lora 8 "
                        f"({whole[0]} has none)")  # fmt: skip


def _told(arm: compare.Arm | compare.Given) -> list[Mapping[str, Any]]:
    return [arm.options, arm.fit] if isinstance(arm, compare.Arm) else [{}, {}]


def _inputs(arm: compare.Arm | compare.Given) -> list[tuple[str, str]]:
    """What an arm reads."""
    return inputs.of_options(arm.options) if isinstance(arm, compare.Arm) else [("arm", arm.name)]


def _sha256(named: inputs.Named) -> dict[str, str]:
    return {name: found["sha256"] for name, found in inputs.contents(named).items()}


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
    """An arm from `METHOD[:PRESET]` or a YAML file that names its method; `defaults` are an example's, by method."""
    written: dict[str, Any] = {}
    if name.endswith(YAML):
        written = options.lines(name)
        if "method" not in written:
            raise UserError(f"{name}: field 'method' is missing")
        for option in ALIKE.keys() & written:
            raise UserError(f"{name}: '{option}' is the same for every arm: {ALIKE[option]}")
        method = str(written.pop("method"))
        label = f"{method} ({Path(name).stem})"
    else:
        method = label = name
    method, _, preset = method.partition(":")
    entry = catalogue.entry(method)
    given = options.parser(entry).arm(name, written)
    changed = dict(defaults.get(method, {})) | (catalogue.preset_of(entry, preset) if preset else {})
    fit = {k.removeprefix("fit."): changed.pop(k) for k in list(changed) if k.startswith("fit.")}
    return compare.Arm(name=label, entry=entry, options=changed | given.options, fit=fit | given.fit)


def _judge(name: str | None) -> judges.Judge | None:
    if name is None:
        return None
    if remote.is_address(name):
        return judges.Asked(remote.connect(name))
    return judges.named(name)


def _same_comparison(out: Path, identity: Any, day: str) -> None:
    """Begin a comparison in `out`, or go on with the same one, perhaps with other arms beside those it had.

    Raises:
        UserError: another comparison stands there, or an arm of the same name with other options.
    """
    place = out / "comparison.json"
    arms = {arm[0]: arm for arm in identity["arms"]}
    try:
        if place.exists():
            try:
                kept = files.read_json(place)
                known = {arm[0]: arm for arm in kept["arms"]}
            except (UserError, LookupError, TypeError):
                raise UserError(f"{place}: damaged: put it back as it was, or begin anew with --overwrite") from None
            changed = [k for k, v in identity.items() if k != "arms" and kept.get(k) != v]
            changed += [name for name, arm in arms.items() if known.get(name, arm) != arm]
            if changed:
                why = f"{', '.join(changed)} differ"
                raise UserError(f"{out} holds another comparison ({why}): choose another --out, or --overwrite")
            arms = known | arms
        elif any((out / "units").glob("*.json")):
            raise UserError(f"{out}: has units and no comparison.json: begin anew with --overwrite")
        files.write_json(place, identity | {"arms": list(arms.values()), "began": day})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
