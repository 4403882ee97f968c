"""Write the catalogue from the code and the scoreboard: `python -m didact.catalogue.make`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from didact import bounds, files, methods
from didact.catalogue import FOLDER
from didact.evaluate import protocols
from didact.registry import METHODS, Method
from didact.types import Fit

SCOREBOARD = FOLDER.parent.parent / "scoreboard"


def make() -> dict[str, dict[str, Any]]:
    """Every method's entry by name; a method is whatever a module below `didact.methods` registers."""
    for found in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(found.name)
    return {name: _entry(METHODS[name]) for name in sorted(METHODS)}


def make_protocols() -> dict[str, dict[str, Any]]:
    """Every protocol's entry by name: what can be told of it without importing it."""
    return {name: _protocol(name, protocols.named(name)) for name in protocols.names()}


def _protocol(name: str, known: protocols.Protocol) -> dict[str, Any]:
    return {
        "kind": known.kind, "primary": known.primary, "held_out": known.held_out, "scored": list(known.scored),
        "answers": known.answers is not None,
        "rank": protocols.RANKING.index(name) if name in protocols.RANKING else None,
    }  # fmt: skip


def write() -> None:
    """Write all files; those of methods and protocols that are gone are removed."""
    for folder, entries in ((FOLDER, make()), (FOLDER / "protocols", make_protocols())):
        for stray in folder.glob("*.json"):
            if stray.stem not in entries:
                stray.unlink()
        for name, entry in entries.items():
            files.write_json(folder / f"{name}.json", entry)


def _entry(method: Method) -> dict[str, Any]:
    doc = inspect.getdoc(method.function) or ""
    body, helps = split_doc(doc)
    options = []
    for name, parameter in method.parameters.items():
        # A function is given in Python only: the command line imports nothing it is told to.
        if name not in method.needs and name not in ("fit", "hooks", "seed") and not _only_python(method.hints[name]):
            options.append(_option(name, method.hints[name], parameter.default, helps))
    fit = method.parameters.get("fit")  # a method without it trains nothing
    card = SCOREBOARD / f"{method.name.partition('.')[0]}.json"  # a paper's variants share its claim
    made = {
        "name": method.name, "family": method.family, "paper": method.paper, "year": method.year,
        "source": method.source, "baseline": method.baseline, "module": method.module,
        "function": method.function.__name__, "help": doc.splitlines()[0] if doc else "", "doc": body,
        "needs": {k: v | {"help": helps.get(k, "")} for k, v in method.needs.items()}, "gives": list(method.gives),
        "capabilities": list(method.capabilities), "kinds": list(method.kinds), "protocol": list(method.protocol),
        "options": options, "fit": _training(fit.default) if fit else [], "presets": method.presets,
        "verdict": json.loads(card.read_text(encoding="utf-8"))["verdict"] if card.exists() else None,
    }  # fmt: skip
    return typing.cast(dict[str, Any], json.loads(json.dumps(made)))


def _option(name: str, hint: Any, default: Any, helps: Mapping[str, str]) -> dict[str, Any]:
    """An option; one that is a dataclass has its fields as options `name.field`."""
    shown = {"name": name, "type": type_name(hint), "help": helps.get(name, ""), "bounds": bounds.describe(hint)}
    if not dataclasses.is_dataclass(default):
        return shown | {"default": default}
    _, inner = split_doc(inspect.getdoc(type(default)) or "")
    hints = bounds.hints_of(type(default))
    fields = [f.name for f in dataclasses.fields(default) if not _only_python(hints[f.name])]
    return shown | {"fields": [_option(f, hints[f], getattr(default, f), inner) for f in fields]}


def _training(default: Fit) -> list[dict[str, Any]]:
    hints = bounds.hints_of(Fit)
    _, helps = split_doc(inspect.getdoc(Fit) or "")
    names = [f.name for f in dataclasses.fields(Fit) if f.name not in ("folder", "seed")]
    return [_option(n, hints[n], getattr(default, n), helps) for n in names]


def _only_python(hint: Any) -> bool:
    """Whether nothing that can be typed at a prompt is of this type."""
    union = typing.get_args(hint) if not isinstance(hint, type) else ()
    return hint is Callable or typing.get_origin(hint) is Callable or (
        bool(union) and "Callable" in str(hint) and str not in union
    )  # fmt: skip


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """A Google-style docstring as the text before its sections and `{argument: help}`."""
    body, _, rest = doc.partition("\nArgs:\n")
    lines = re.split(r"\n(?=\S)", rest)[0]
    helps = {}
    for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", lines, re.M):
        helps[name] = " ".join(text.split())
    return body.strip(), helps


def type_name(hint: Any) -> str:
    """A type as a user reads it, without bounds: choices separated by |, else its name."""
    hint = _plain(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and not typing.get_args(hint):
        return str(hint.__name__)
    shown = re.sub(r" \| didact\.types\.\w+", "", str(hint))  # a part that can be given in Python only
    shown = shown.replace("typing.", "").replace("collections.abc.Sequence", "list")
    shown = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", shown)
    return re.sub(r"\bdidact\.[\w.]*\.", "", shown)


def _plain(hint: Any) -> Any:
    """An annotation without the bounds in it."""
    holder: Any = type("Holder", (), {"__annotations__": {"x": hint}})
    return typing.get_type_hints(holder)["x"]


if __name__ == "__main__":
    write()
