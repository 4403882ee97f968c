"""The catalogue: every method's name, needs, options and help, made from its signature and docstring.

`python -m didact.catalogue` writes `catalogue.json`; everything that only lists or explains reads that
file and imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

from didact.types import Fit, UserError

FILE = Path(__file__).with_name("catalogue.json")
SCOREBOARD = Path(__file__).parent.parent / "scoreboard"
FAMILIES = ("alignment", "baselines", "mechanisms", "prompting", "unlearning")


@functools.cache
def read() -> dict[str, dict[str, Any]]:
    """All methods by name, as they stand in `catalogue.json`."""
    return {entry["name"]: entry for entry in json.loads(FILE.read_text())}


def entry(name: str) -> dict[str, Any]:
    """One method's entry.

    Raises:
        UserError: there is none of that name; the nearest are named.
    """
    methods = read()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(methods))}"
        raise UserError(f"unknown method '{name}': {hint} (`didact methods` lists them)")
    return methods[name]


def papers() -> list[str]:
    """The methods that have a claim: every paper's once, by its slug, whatever variants it has."""
    return list(dict.fromkeys(e["name"].partition(".")[0] for e in read().values() if not e["baseline"]))


def make() -> list[dict[str, Any]]:
    """The catalogue from the code and the scoreboard."""
    from didact.registry import METHODS

    for family in FAMILIES:
        importlib.import_module(f"didact.methods.{family}")
    return [_entry(METHODS[name]) for name in sorted(METHODS)]


def _entry(method: Any) -> dict[str, Any]:
    doc = inspect.getdoc(method.function) or ""
    body, helps = split_doc(doc)
    needs = method.needs()
    options = []
    for name, parameter in inspect.signature(method.function).parameters.items():
        hint = typing.get_type_hints(method.function)[name]
        # A function is given in Python only: the command line imports nothing it is told to.
        if name not in needs and name not in ("fit", "hooks", "seed") and "Callable" not in str(hint):
            options.append(
                {"name": name, "type": type_name(hint), "default": parameter.default, "help": helps.get(name, "")}
            )
    fit = inspect.signature(method.function).parameters.get("fit")  # a method without it trains nothing
    _, fit_helps = split_doc(inspect.getdoc(Fit) or "")
    hints = typing.get_type_hints(Fit)
    training = [
        {"name": n, "type": type_name(hints[n]), "default": getattr(fit.default, n), "help": fit_helps.get(n, "")}
        for n in (f.name for f in dataclasses.fields(Fit))
        if fit and n not in ("folder", "seed")
    ]
    card = SCOREBOARD / f"{method.name.partition('.')[0]}.json"  # a paper's variants share its claim
    verdict = json.loads(card.read_text())["verdict"] if card.exists() else None
    made = {
        "name": method.name, "family": method.family, "paper": method.paper, "year": method.year,
        "source": method.source, "baseline": method.baseline, "module": method.module,
        "function": method.function.__name__, "help": doc.splitlines()[0] if doc else "", "doc": body,
        "needs": {k: v | {"help": helps.get(k, "")} for k, v in needs.items()}, "gives": list(method.gives),
        "capabilities": list(method.capabilities), "protocol": method.protocol, "options": options,
        "fit": training, "presets": method.presets, "verdict": verdict,
    }  # fmt: skip
    return typing.cast(dict[str, Any], json.loads(json.dumps(made)))


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """A Google-style docstring as the text before its sections and `{argument: help}`."""
    body, _, rest = doc.partition("\nArgs:\n")
    lines = re.split(r"\n(?=\S)", rest)[0]
    helps = {}
    for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", lines, re.M):
        helps[name] = " ".join(text.split())
    return body.strip(), helps


def type_name(hint: Any) -> str:
    """A type as a user reads it: choices separated by |, else its name."""
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    named = isinstance(hint, type) and not typing.get_args(hint)
    if named:
        return str(hint.__name__)
    shown = re.sub(r" \| didact\.types\.\w+", "", str(hint))  # a part that can be given in Python only
    shown = shown.replace("typing.", "").replace("collections.abc.Sequence", "list")
    return re.sub(r"\bdidact\.[\w.]*\.", "", shown)


if __name__ == "__main__":
    from didact import files

    files.write_json(FILE, make())
