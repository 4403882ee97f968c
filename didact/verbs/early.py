"""Checks that need no model, made before torch is imported: folders, options, files and their fields.

Every verb runs these first, from the command line and from Python. Records are read once: the verb gets what is read
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, files, folders, options, values
from didact.data import convert, read
from didact.infer import addresses
from didact.models import places
from didact.parallel import launch
from didact.requests import Common, Comparison, Request
from didact.types import UserError
from didact.verbs import inputs

YAML = (".yaml", ".yml")
OF_ANSWERS = ("dtype", "quantize", "chat", "stops")  # options that a saved model takes over from its run
OF_SCORES = (*OF_ANSWERS, "turns", "max_length", "truncate")


def run(request: Request) -> None:
    """Check a run.

    Raises:
        UserError: something is missing or invalid.
    """
    launch.check()
    launch.several(str(request.fit.get("parallel", "ddp")))
    entry = catalogue.entry(request.method)
    if request.preset:
        catalogue.preset_of(entry, request.preset)
    paths = {"--model": request.model, "--gold": request.gold, "--score-on": request.score_on}
    paths |= {f"--{k}": path for k, path in request.data.items()} | {"--config": request.config}
    _check_out(request.out, "run", paths | dict(inputs.of_options(request.options)))
    if not request.overwrite and (Path(request.out) / "result.json").exists():
        return  # finished or begun: the run first compares its inputs
    for address in (request.model, *request.options.values()):
        if isinstance(address, str) and addresses.is_address(address):
            addresses.check_address(address)
    if request.generate_with:
        _check_engine(request, entry)
    check_inputs(request, entry)
    _check_models(request.device, request.dtype, request.model, request.gold)
    places.check_quantize(request.quantize, request.model or "")
    reading = (request.rename, request.skip_bad, request.turns)
    for name, path in request.data.items():
        read.ahead(path, entry["needs"][name]["kind"], *reading, name == entry["answers"])
    kinds = [catalogue.protocols()[name]["kind"] for name in entry["protocol"]]
    if request.score_on and any(kinds):
        read.ahead(request.score_on, next(filter(None, kinds)), *reading)


def _check_engine(request: Request, entry: Mapping[str, Any]) -> None:
    """Refuse --generate-with for a method that does not sample, or without a model to send to the server."""
    if not entry["rounds"]:
        samplers = [name for name, e in catalogue.read().items() if e["rounds"]]
        raise UserError(f"--generate-with: {entry['name']} does not sample while it trains; {', '.join(samplers)} do")
    if request.generate_with != "vllm":
        addresses.check_address(request.generate_with or "")
    if request.model is None:
        raise UserError("--generate-with needs --model: the model of an embedded example cannot be served")


def check_inputs(request: Request, entry: Mapping[str, Any]) -> None:
    """Refuse a run without the model or a file that its method requires, if there is no example to run instead.

    Raises:
        UserError: one is missing.
    """
    required = {n: v["kind"] for n, v in entry["needs"].items() if v["required"]}
    words = [f"--{n.replace('_', '-')} {'DIR' if k == 'model' else n.upper() + '.jsonl'}" for n, k in required.items()]
    command = " ".join(["didact run", entry["name"], *words])
    if request.model is None and not request.data:
        if entry["baseline"] or "package" in entry:
            raise UserError(f"{request.method} has no embedded example; give it a model and data: {command}")
        return
    for name, kind in required.items():
        if not (request.model if kind == "model" else request.data.get(name)):
            raise UserError(f"{request.method} needs --{name.replace('_', '-')} ({kind}): {command}")


def comparison(request: Comparison) -> None:
    """Check a comparison, also that its records can train and score every arm.

    Raises:
        UserError: something is missing or invalid.
    """
    launch.alone("compare")
    paths = {"--model": request.model, "--gold": request.gold, "--judge": request.judge}
    paths |= {f"arm {name}": name for name in request.arms if name.endswith(YAML)}
    _check_out(request.out, "comparison", paths | {f"--{k}": path for k, path in request.data.items()})
    if request.budget:
        values.budget(request.budget)
    arms = [(name, entry) for name in request.arms if (entry := _arm_entry(name)) is not None]
    model_count = len(request.arms) - len(arms)
    if len(set(request.arms)) < len(request.arms):
        raise UserError("an arm is named twice")
    if request.model is None and not request.data:
        return  # the embedded example
    if not request.arms:
        raise UserError("name the methods to compare: didact compare dpo kto ...")
    if request.model is None and not model_count:
        raise UserError("--model is required with data of your own (without both, the embedded example is run)")
    if request.budget is None and arms:
        raise UserError("--budget is required: what each arm may use, as in 20M-tokens or 90-seconds")
    if not request.data:
        raise UserError("no data: give a file by its kind, as in --preference pairs.jsonl")
    _check_models(request.device, request.dtype, request.model, request.gold)
    places.check_quantize(request.quantize, request.model or "")
    entries = [entry for _, entry in arms] or list(catalogue.read().values())
    kinds = catalogue.kinds(entries)
    if unknown := [name for name in request.data if name not in kinds]:
        raise UserError(f"--{unknown[0]}: none of these methods takes it; they take {', '.join(sorted(kinds))}")
    reading = (dict(request.rename), request.skip_bad, request.turns)
    check_arms(arms, {n: read.ahead(path, kinds[n], *reading) for n, path in request.data.items()}, request.protocol)


def check_arms(
    arms: Sequence[tuple[str, Mapping[str, Any]]], records: Mapping[str, Sequence[Any]], protocol: str | None
) -> None:
    """Refuse arms (names and catalogue entries) that these records cannot train or a protocol cannot score.

    Raises:
        UserError: there is one.
    """
    chosen = protocol or catalogue.protocol_for(records)
    if catalogue.protocols()[chosen]["primary"] is None or not catalogue.scored(chosen, records):
        raise UserError(f"protocol '{chosen}' cannot score {', '.join(records)} records")
    for name, entry in arms:
        convert.inputs(name, entry["needs"], records)
        if "models" not in entry["gives"] and not catalogue.protocols()[chosen]["answers"]:
            raise UserError(f"{name} gives no model, so it cannot be scored by '{chosen}': leave it out")


def is_model(arm: str) -> bool:
    """Whether a word of the command line is a model rather than a method: an address, a folder, a hub id."""
    if addresses.is_address(arm):
        return True
    if arm.endswith(YAML):
        return False
    return "/" in arm or arm.endswith(".gguf") or (Path(arm).is_dir() and arm.partition(":")[0] not in catalogue.read())


def place(folder: str) -> str:
    """Return the model's folder in the --out folder of a run, or the folder itself."""
    inner = Path(folder) / "model"
    return str(inner) if inner.is_dir() and not (Path(folder) / "config.json").exists() else folder


def _arm_entry(name: str) -> dict[str, Any] | None:
    """Return the catalogue entry of an arm; None if it is a model."""
    if is_model(name):
        if addresses.is_address(name):
            addresses.check_address(name)
        else:
            places.check(place(name))
        return None
    method, _, preset = name.partition(":")
    if name.endswith(YAML):
        method, _, preset = str(options.lines(name).get("method", "")).partition(":")
        if not method:
            raise UserError(f"{name}: field 'method' is missing")
    entry = catalogue.entry(method)
    if preset:
        catalogue.preset_of(entry, preset)
    return entry


def saved(folder: str) -> Path:
    """Return the model's folder in the folder of a run, or the folder itself.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a run, or a model folder")
    return root / "model" if (root / "model").is_dir() else root


def evaluation(
    folder: str, data: str, protocol: str, *, retain: str | None = None, unseen: str | None = None, **settings: Any
) -> None:
    """Check an evaluation: the model exists and the records can be read.

    Raises:
        UserError: something is missing or invalid.
    """
    request = as_run(folder, settings, OF_SCORES)
    _check_models(request.device, request.dtype, request.gold)
    if protocol in catalogue.protocols():
        kind = catalogue.protocols()[protocol]["kind"] or "demo"
        for path in filter(None, (data, retain, unseen)):
            read.ahead(path, kind, request.rename, request.skip_bad, request.turns)


def as_run(folder: str, settings: Mapping[str, Any], names: Sequence[str] = OF_ANSWERS) -> Common:
    """Return the options to use or score a saved model with: `settings`, else those of its run that are in `names`.

    Raises:
        UserError: there is no such folder.
    """
    saved(folder)
    stored = read_result(folder).get("request")
    inherited = {n: stored[n] for n in names if stored.get(n) is not None} if isinstance(stored, dict) else {}
    inherited = {n: v if n == "stops" else options.common(n, v) for n, v in inherited.items()}
    return Common(**inherited | {k: v for k, v in settings.items() if v is not None})


def read_result(folder: str) -> dict[str, Any]:
    """Return the result.json of a run; empty if the folder is not a run's."""
    place = Path(folder) / "result.json"
    result = files.read_json(place) if place.exists() else {}
    return result if isinstance(result, dict) and result.get("verb") == "run" else {}


def answers(
    folder: str, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, **settings: Any
) -> None:
    """Check that the model to prompt exists.

    Raises:
        UserError: it does not.
    """
    request = as_run(folder, settings)
    _check_models(request.device, request.dtype)


def _check_out(out: str, verb: str, paths: Mapping[str, Any]) -> None:
    inputs.check_out(out, paths.items())
    folders.check(out, verb)


def _check_models(device: str | None, dtype: str = "float32", *models: str | None) -> None:
    places.check_dtype(dtype)
    places.check_device(device)
    for model in models:
        if model and not addresses.is_address(model):
            places.check(model)
