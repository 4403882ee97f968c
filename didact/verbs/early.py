"""What can be refused without a model, told before torch is imported: folders, options, files and their fields.

Every verb comes through here first, from the command line and from Python. Records are read once: what is read here is
what the verb is given.
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
OF_ANSWERS = ("dtype", "quantize", "chat", "stops")  # what a saved model is asked with as its run had it
OF_SCORES = (*OF_ANSWERS, "turns", "max_length", "truncate")


def run(request: Request) -> None:
    """Refuse a run that cannot be.

    Raises:
        UserError: something is missing or wrong.
    """
    launch.check()
    launch.several(str(request.fit.get("parallel", "ddp")))
    entry = catalogue.entry(request.method)
    if request.preset:
        catalogue.preset_of(entry, request.preset)
    named = {"--model": request.model, "--gold": request.gold, "--score-on": request.score_on}
    named |= {f"--{k}": path for k, path in request.data.items()} | {"--config": request.config}
    _out(request.out, "run", named | dict(inputs.of_options(request.options)))
    if not request.overwrite and (Path(request.out) / "result.json").exists():
        return  # done or begun: its own inputs are looked at first
    for address in (request.model, *request.options.values()):
        if isinstance(address, str) and addresses.is_address(address):
            addresses.check_address(address)
    if request.generate_with:
        _engine(request, entry)
    given(request, entry)
    _models(request.device, request.dtype, request.model, request.gold)
    places.check_quantize(request.quantize, request.model or "")
    how = (request.rename, request.skip_bad, request.turns)
    for name, path in request.data.items():
        read.ahead(path, entry["needs"][name]["kind"], *how, name == entry["answers"])
    kinds = [catalogue.protocols()[name]["kind"] for name in entry["protocol"]]
    if request.score_on and any(kinds):
        read.ahead(request.score_on, next(filter(None, kinds)), *how)


def _engine(request: Request, entry: Mapping[str, Any]) -> None:
    """Refuse --generate-with of a method that samples nothing, or without a model that a server could have."""
    if not entry["rounds"]:
        able = [name for name, other in catalogue.read().items() if other["rounds"]]
        raise UserError(f"--generate-with: {entry['name']} does not sample while it trains; {', '.join(able)} do")
    if request.generate_with != "vllm":
        addresses.check_address(request.generate_with or "")
    if request.model is None:
        raise UserError("--generate-with needs --model: no server has the model of an embedded example")


def given(request: Request, entry: Mapping[str, Any]) -> None:
    """Refuse a run without the model or a file that its method requires, or without an example to run instead.

    Raises:
        UserError: one is missing.
    """
    wanted = {n: v["kind"] for n, v in entry["needs"].items() if v["required"]}
    words = [f"--{n.replace('_', '-')} {'DIR' if k == 'model' else n.upper() + '.jsonl'}" for n, k in wanted.items()]
    command = " ".join(["didact run", entry["name"], *words])
    if request.model is None and not request.data:
        if entry["baseline"] or "package" in entry:
            raise UserError(f"{request.method} has no embedded example; give it a model and data: {command}")
        return
    for name, kind in wanted.items():
        if not (request.model if kind == "model" else request.data.get(name)):
            raise UserError(f"{request.method} needs --{name.replace('_', '-')} ({kind}): {command}")


def comparison(request: Comparison) -> None:
    """Refuse a comparison that cannot be: also an arm that its records do not serve, or that they cannot score.

    Raises:
        UserError: something is missing or wrong.
    """
    launch.alone("compare")
    named = {"--model": request.model, "--gold": request.gold, "--judge": request.judge}
    named |= {f"arm {name}": name for name in request.arms if name.endswith(YAML)}
    _out(request.out, "comparison", named | {f"--{k}": path for k, path in request.data.items()})
    if request.budget:
        values.budget(request.budget)
    arms = [(name, entry) for name in request.arms if (entry := _arm(name)) is not None]
    models = len(request.arms) - len(arms)
    if len(set(request.arms)) < len(request.arms):
        raise UserError("an arm is named twice")
    if request.model is None and not request.data:
        return  # the embedded example
    if not request.arms:
        raise UserError("name the methods to compare: didact compare dpo kto ...")
    if request.model is None and not models:
        raise UserError("--model is required with data of your own (without both, the embedded example is run)")
    if request.budget is None and arms:
        raise UserError("--budget is required: what each arm may use, as in 20M-tokens or 90-seconds")
    if not request.data:
        raise UserError("no data: give a file by its kind, as in --preference pairs.jsonl")
    _models(request.device, request.dtype, request.model, request.gold)
    places.check_quantize(request.quantize, request.model or "")
    entries = [entry for _, entry in arms] or list(catalogue.read().values())
    kinds = catalogue.kinds(entries)
    if unknown := [name for name in request.data if name not in kinds]:
        raise UserError(f"--{unknown[0]}: none of these methods takes it; they take {', '.join(sorted(kinds))}")
    how = (dict(request.rename), request.skip_bad, request.turns)
    able(arms, {n: read.ahead(path, kinds[n], *how) for n, path in request.data.items()}, request.protocol)


def able(
    arms: Sequence[tuple[str, Mapping[str, Any]]], records: Mapping[str, Sequence[Any]], protocol: str | None
) -> None:
    """Refuse arms, by name with their catalogue entries, that records do not serve or a protocol cannot score.

    Raises:
        UserError: there is one.
    """
    used = protocol or catalogue.protocol_for(records)
    if catalogue.protocols()[used]["primary"] is None or not catalogue.scored(used, records):
        raise UserError(f"protocol '{used}' cannot score {', '.join(records)} records")
    for name, entry in arms:
        convert.inputs(name, entry["needs"], records)
        if "models" not in entry["gives"] and not catalogue.protocols()[used]["answers"]:
            raise UserError(f"{name} gives no model, so it cannot be scored by '{used}': leave it out")


def named(arm: str) -> bool:
    """Whether a word of the command line is a model rather than a method: an address, a folder, a hub id."""
    if addresses.is_address(arm):
        return True
    if arm.endswith(YAML):
        return False
    return "/" in arm or arm.endswith(".gguf") or (Path(arm).is_dir() and arm.partition(":")[0] not in catalogue.read())


def place(folder: str) -> str:
    """The model in the --out folder of a run, or the folder itself."""
    inner = Path(folder) / "model"
    return str(inner) if inner.is_dir() and not (Path(folder) / "config.json").exists() else folder


def _arm(name: str) -> dict[str, Any] | None:
    """The catalogue entry of an arm; None for one that is a model."""
    if named(name):
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
    """Where the model in the folder of a run, or in a model's own, stands.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a run, or a model folder")
    return root / "model" if (root / "model").is_dir() else root


def evaluation(
    folder: str, data: str, protocol: str, *, retain: str | None = None, unseen: str | None = None, **given: Any
) -> None:
    """Refuse to score what is not there, or on records that cannot be read.

    Raises:
        UserError: something is missing or wrong.
    """
    asked = as_run(folder, given, OF_SCORES)
    _models(asked.device, asked.dtype, asked.gold)
    if protocol in catalogue.protocols():
        kind = catalogue.protocols()[protocol]["kind"] or "demo"
        for path in filter(None, (data, retain, unseen)):
            read.ahead(path, kind, asked.rename, asked.skip_bad, asked.turns)


def as_run(folder: str, given: Mapping[str, Any], names: Sequence[str] = OF_ANSWERS) -> Common:
    """How a saved model is asked or scored: by `names` as its run had it, where `given` says nothing else.

    Raises:
        UserError: there is no such folder.
    """
    saved(folder)
    had = told(folder).get("request")
    said = {n: had[n] for n in names if had.get(n) is not None} if isinstance(had, dict) else {}
    said = {n: v if n == "stops" else options.common(n, v) for n, v in said.items()}
    return Common(**said | {k: v for k, v in given.items() if v is not None})


def told(folder: str) -> dict[str, Any]:
    """The result.json of a run; nothing where the folder is another's."""
    place = Path(folder) / "result.json"
    found = files.read_json(place) if place.exists() else {}
    return found if isinstance(found, dict) and found.get("verb") == "run" else {}


def answers(
    folder: str, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, **given: Any
) -> None:
    """Refuse to ask a model that is not there.

    Raises:
        UserError: there is none.
    """
    asked = as_run(folder, given)
    _models(asked.device, asked.dtype)


def _out(out: str, verb: str, named: Mapping[str, Any]) -> None:
    inputs.check_apart(out, named.items())
    folders.check(out, verb)


def _models(device: str | None, dtype: str = "float32", *models: str | None) -> None:
    places.check_dtype(dtype)
    places.check_device(device)
    for model in models:
        if model and not addresses.is_address(model):
            places.check(model)
