"""A prepared request: files read, the model loaded, everything checked before any work."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from didact import catalogue, registry
from didact.claims.problem import Problem
from didact.data import chat, formats, general, splits, templates
from didact.data.read import Records, read
from didact.evaluate import answers as final_answers
from didact.evaluate import own, protocols
from didact.infer import functions, remote
from didact.infer import lm as language_models
from didact.learn import rates
from didact.models import adapters
from didact.models.model import Model
from didact.requests import Request
from didact.types import LM, Fit, Record, Text, UserError
from didact.verbs import early, inputs, opened, watching
from didact.verbs.usable import usable

FEWEST = 10  # records below which none is held out


@dataclass
class Job:
    """A request with its files read and its model loaded: ready to run, or to be estimated with --dry-run."""

    request: Request
    entry: Mapping[str, Any]
    function: Any
    model: Model | LM | None
    train: dict[str, Sequence[Record]]
    scored: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    options: dict[str, Any]
    fit: Fit
    provenance: dict[str, str]
    warnings: list[str]
    embedded: bool
    notes: list[str]
    general: Sequence[str] = ()
    metrics: Mapping[str, own.Metric] = field(default_factory=dict)

    def tell(self) -> None:
        """Print the notes on automatic choices to standard error, once the run is sure to begin."""
        for note in self.notes:
            print(note, file=sys.stderr)


def prepare(request: Request) -> Job:
    """Read everything a run needs and check it, before any work.

    Raises:
        UserError: an input is missing or invalid.
    """
    inputs.check_out(request.out, all_inputs(request))
    entry = catalogue.entry(request.method)
    function = getattr(importlib.import_module(entry["module"]), entry["function"])
    preset = catalogue.preset_of(entry, request.preset) if request.preset else {}
    embedded = request.model is None and not request.data
    early.check_inputs(request, entry)
    functions.LIMIT["seconds"] = request.function_timeout
    final_answers.checked(request.final_answer, entry["protocol"])
    watching.check(request.evaluate_every, request.keep_best, entry, parameter_names(function))
    metrics = own.load_metrics(request.metric)
    for address in (request.model, *request.options.values()):
        if isinstance(address, str) and remote.is_address(address):
            remote.check_address(address)  # before anything is written
    default = next((p.default for n, p in signature(function) if n == "fit"), Fit())
    preset_fit = {k.removeprefix("fit."): preset.pop(k) for k in list(preset) if k.startswith("fit.")}
    # Refuse a bad value before the example is made or a model is loaded.
    default.replace(**{**preset_fit, **request.fit})
    registry.METHODS[request.method].check(registry.assemble(function, {**preset, **request.options}))
    problem = example(request.method, request.seed) if embedded else Problem()
    provenance = dict.fromkeys((*problem.options, *problem.fit), "example")
    provenance |= dict.fromkeys((*preset, *preset_fit), f"preset {request.preset}") | request.provenance
    options = registry.assemble(function, {**problem.options, **preset, **request.options})
    folder = {"folder": str(Path(request.out) / "checkpoints"), "seed": request.seed}
    fit = default.replace(**{**problem.fit, **preset_fit, **request.fit, **folder})
    model: Model | LM | None = problem.model
    records: dict[str, Sequence[Record]] = dict(problem.data)
    sources: dict[str, dict[str, Any]] = {
        k: {"path": "embedded example", "records": len(v)} for k, v in records.items()
    }
    if request.quantize and entry["fit"] and not fit.lora:
        raise UserError(f"--quantize {request.quantize}: quantized weights are not trained, only an adapter: --lora 8")
    # DoRA needs norms of whole weights, a server is sent them, and a dry run only measures them.
    replicated = not entry["fit"] or fit.dora or request.generate_with or request.dry_run
    parallel = "ddp" if replicated else fit.parallel
    if not embedded:
        model, records, sources = _inputs(request, entry, parallel)
    if isinstance(model, Model) and entry["fit"]:
        if message := adapters.describe(model, fit.lora):
            print(f"{request.model}: {message}", file=sys.stderr)
        model = model.ready(fit.lora)
    train, scored, warnings = _held_out(entry, records, request, problem, model, parallel)
    notes: list[str] = []
    if isinstance(model, Model) and entry["fit"] and not embedded:
        if "lr" not in provenance:
            rate, note = rates.chosen(model, fit)
            if note:
                notes.append(note)
                fit, provenance["lr"] = fit.replace(lr=rate), "model size"
        first = next(iter(train.values()), ())
        # For documents, the method itself decides what a row is.
        if first and not isinstance(first[0], Text) and (warning := rates.plan_warning(model, fit, len(first))):
            notes.append(warning)
            warnings.append(warning)
    for name in entry["protocol"]:
        if protocols.by_name(name).records(scored):
            own.check(metrics, protocols.by_name(name), scored)
            break
    general_texts = general.texts(request.retention, "keep")
    if fit.replay:
        rows = [r for part in scored.values() if isinstance(part, list) for r in part]
        general.check_no_leak(fit.replay_from, rows, general_texts)
    return Job(
        request, entry, function, model, train, scored, sources, options, fit, provenance, warnings, embedded,
        notes, general_texts, metrics,
    )  # fmt: skip


def other_inputs(request: Request) -> list[tuple[str, Any]]:
    """Return the inputs of a run beside its data, by option."""
    options = {"--model": request.model, "--gold": request.gold, "--score-on": request.score_on}
    options |= {"--retention": request.retention, "--replay-from": request.fit.get("replay_from")}
    options |= {f"--metric {name}": name for name in (request.metric or "").split(",")}
    options["--chat-template"] = request.chat_template
    return [*options.items(), *inputs.of_options(request.options)]


def all_inputs(request: Request) -> list[tuple[str, Any]]:
    """Return all inputs of a run, also its data and the file of its options."""
    return [
        *other_inputs(request),
        ("--config", request.config),
        *((f"--{k}", path) for k, path in request.data.items()),
    ]


def example(method: str, seed: int) -> Problem:
    """Return the method's embedded example; a variant `slug.name` has its own in the paper's claim module."""
    slug, _, variant = method.partition(".")
    module = importlib.import_module(f"didact.claims.{catalogue.entry(method)['family']}.{slug.replace('-', '_')}")
    problem: Problem = getattr(module, f"problem_{variant.replace('-', '_')}" if variant else "problem")(seed)
    return problem


def _inputs(
    request: Request, entry: Mapping[str, Any], parallel: str
) -> tuple[Model | remote.Remote | None, dict[str, Sequence[Record]], dict[str, dict[str, Any]]]:
    """Load the model and the records that the user named; return them with the files' details."""
    served = _served(request, entry)  # first: refuse a server that lacks a capability before any work
    records: dict[str, Sequence[Record]] = {}
    sources = {}
    for name, path in request.data.items():
        answered = name == entry["answers"]
        rows = read(path, entry["needs"][name]["kind"], request.rename, request.skip_bad, request.turns, answered)
        records[name] = rows
        sources[name] = {
            "path": path,
            "sha256": formats.fingerprint(path),
            "records": len(rows),
            "dropped": rows.dropped,
        }
    model = served or (opened.model(request.model, request, request.quantize, parallel) if request.model else None)
    if isinstance(model, Model) and model.processor is not None:
        for name in records:
            sources[name]["chat"] = chat.chat_choice(model.processor, records[name], request.chat)
            raw, records[name] = records[name], templates.as_chat(records[name], request.chat)
            if isinstance(raw, Records):
                records[name] = usable(records[name], raw, model, request.skip_bad, entry["fit"])
                sources[name] |= {"records": len(records[name]), "dropped": raw.dropped}
    if served is not None:
        records = {name: templates.as_chat(rows, request.chat) for name, rows in records.items()}
    return model, records, sources


def _served(request: Request, entry: Mapping[str, Any]) -> remote.Remote | None:
    """Connect to the server named as the model and check its capabilities; None if none is named."""
    if not request.model or not remote.is_address(request.model):
        return None
    served = remote.connect(
        request.model, budget_calls=request.budget_calls, budget_tokens=request.budget_tokens,
        parallel=4 if request.parallel_calls is None else request.parallel_calls,
    )  # fmt: skip
    language_models.need(served, *entry["capabilities"], by=request.method)
    return served


def _held_out(
    entry: Mapping[str, Any],
    records: Mapping[str, Sequence[Record]],
    request: Request,
    problem: Problem,
    model: Model | LM | None,
    parallel: str,
) -> tuple[dict[str, Sequence[Record]], dict[str, Any], list[str]]:
    """Return the training records, the held-out records for scoring (chosen by hash), and warnings."""
    train, warnings = dict(records), list[str]()
    scored: dict[str, Any] = dict(problem.protocol)
    if request.gold:
        scored["gold"] = opened.model(request.gold, request, parallel=parallel)
    scorers = [protocols.by_name(name) for name in entry["protocol"]]
    if request.score_on:
        kind = next((protocol.kind for protocol in scorers if protocol.kind), None)
        if kind is None:
            raise UserError(
                f"--score-on {request.score_on}: {request.method} trains no model that is scored on records"
            )
        name = next((n for n, need in entry["needs"].items() if need["kind"] == kind), kind)
        name = scorers[0].held_out or name
        raw: Records[Any] = read(request.score_on, kind, request.rename, request.skip_bad, request.turns)
        scored[name] = templates.as_chat(raw, request.chat)
        if isinstance(model, Model) and model.processor is not None:
            scored[name] = usable(scored[name], raw, model, request.skip_bad)
    if entry["answers"]:
        answered = [r for r in train.get(entry["answers"], ()) if getattr(r, "completion", None) != ""]
        return train, scored | ({entry["answers"]: answered} if answered else {}), warnings
    for protocol in scorers:
        scored |= {name: train[name] for name in protocol.scored if name in train}
        name = held_out_from(protocol, entry, train)
        if name is None or name in scored or (protocol.held_out is None and protocol.records(scored)):
            continue
        rows = train[name]
        enough = request.holdout > 0 and len(rows) >= FEWEST
        if enough and (held := splits.held_out(splits.keys(rows, request.group_by, name), request.holdout)):
            train[name] = [r for i, r in enumerate(rows) if i not in held]
            scored[name] = [r for i, r in enumerate(rows) if i in held]
        else:
            scored[name] = rows
            warnings.append(
                f"{name}: scored on the records it was trained on, which flatters it (--holdout 0.2 holds some out)"
            )
    return train, scored, warnings


def held_out_from(
    protocol: protocols.Protocol, entry: Mapping[str, Any], records: Mapping[str, Sequence[Record]]
) -> str | None:
    """Return the input that a protocol scores: the one it names, one of its kind, or one that converts to it."""
    if protocol.held_out is not None:
        return protocol.held_out if protocol.held_out in records else None
    kinds = {name: need["kind"] for name, need in entry["needs"].items() if records.get(name)}
    exact = [name for name, kind in kinds.items() if kind == protocol.kind]
    serving = [name for name, kind in kinds.items() if protocols.records_of(protocol.kind, {kind: records[name]})]
    return next(iter([*exact, *serving]), None)


def signature(function: Any) -> list[tuple[str, Any]]:
    """Return a method's parameters with their names, in order."""
    return list(inspect.signature(function).parameters.items())


def parameter_names(function: Any) -> set[str]:
    """Return the names of a method's parameters."""
    return {n for n, _ in signature(function)}
