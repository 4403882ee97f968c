"""Write the catalogue, and docs/llms.txt, from the code and the scoreboard: `python -m didact.catalogue.make`."""

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
DOCS = FOLDER.parent.parent / "docs"


def make() -> dict[str, dict[str, Any]]:
    """Return every method's entry, by name: all that the modules below `didact.methods` register."""
    for module in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    own = (name for name, method in METHODS.items() if method.module.startswith(f"{methods.__name__}."))
    return {name: _entry(METHODS[name]) for name in sorted(own)}


def of_module(module: str) -> list[dict[str, Any]]:
    """Return the entries of the methods that a module, or one below it, registered."""
    return [_entry(m) for m in METHODS.values() if f"{m.module}.".startswith(f"{module}.")]


def make_protocols() -> dict[str, dict[str, Any]]:
    """Return every protocol's entry, by name: what must be known of it without importing it."""
    return {name: _protocol(name, protocols.by_name(name)) for name in protocols.names()}


def _protocol(name: str, entry: protocols.Protocol) -> dict[str, Any]:
    return {
        "kind": entry.kind, "primary": entry.primary, "held_out": entry.held_out, "scored": list(entry.scored),
        "beside": list(entry.extra_sets), "answers": entry.answers is not None,
        "rank": protocols.RANKING.index(name) if name in protocols.RANKING else None,
    }  # fmt: skip


def write() -> None:
    """Write all files; remove those of methods and protocols that no longer exist."""
    entries = make()
    for folder, contents in ((FOLDER, entries), (FOLDER / "protocols", make_protocols())):
        for stray in folder.glob("*.json"):
            if stray.stem not in contents:
                stray.unlink()
        for name, entry in contents.items():
            files.write_json(folder / f"{name}.json", entry)
    with files.new_file(DOCS / "llms.txt") as temporary:
        temporary.write_text(llms(entries), encoding="utf-8")


def llms(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return an index of the documentation for language models (llmstxt.org): one line per page and method."""
    lines = [
        "# didact",
        "",
        "> Of the published ways to teach a language model, which one works on my model and my data?",
    ]
    lines += ["> A Python library and a command line: advise, run, compare, evaluate, claim, merge, push.", ""]
    lines += ["## Pages", ""]
    for page in sorted(DOCS.glob("*.md")):
        title, _, text = page.read_text(encoding="utf-8").partition("\n")
        first = re.search(r"^(?![#|>-]|```).+(?:\n.+)*", text, re.M)
        lines.append(f"- [{title.lstrip('# ')}]({page.name}): {_opening(first[0] if first else '')}")
    lines += ["", "## Methods", ""]
    for name, e in entries.items():
        verdict = "baseline" if e["baseline"] else f"its claim: {e['verdict'] or 'not yet measured'}"
        lines.append(f"- [{name}](methods/{name}.md): {e['help']} Takes {', '.join(e['needs'])}; {verdict}.")
    return "\n".join(lines) + "\n"


def _opening(text: str) -> str:
    """Return the first sentence, or two if it is short, on one line."""
    first, *rest = re.split(r"(?<=[.?])\s", " ".join(text.split()))
    return f"{first} {rest[0]}" if len(first) < 60 and rest else first


def _entry(method: Method) -> dict[str, Any]:
    doc = inspect.getdoc(method.function) or ""
    body, helps = split_doc(doc)
    options = []
    for name, parameter in method.parameters.items():
        # A function can be given in Python only: the command line imports no code by name.
        if name not in method.needs and name not in ("fit", "hooks", "seed") and not _only_python(method.hints[name]):
            options.append(_option(name, method.hints[name], parameter.default, helps))
    fit = method.parameters.get("fit")  # a method without it trains nothing
    card = SCOREBOARD / f"{method.name.partition('.')[0]}.json"  # variants of a method share its paper's claim
    entry = {
        "name": method.name, "family": method.family, "paper": method.paper, "year": method.year,
        "source": method.source, "baseline": method.baseline, "module": method.module,
        "function": method.function.__name__, "help": doc.splitlines()[0] if doc else "", "doc": body,
        "needs": {k: v | {"help": helps.get(k, "")} for k, v in method.needs.items()}, "gives": list(method.gives),
        "capabilities": list(method.capabilities), "kinds": list(method.kinds), "protocol": list(method.protocol),
        "answers": method.answers, "rounds": method.rounds,
        "options": options, "fit": _training(fit.default) if fit else [], "presets": method.presets,
        "verdict": json.loads(card.read_text(encoding="utf-8"))["verdict"] if card.exists() else None,
    }  # fmt: skip
    return typing.cast(dict[str, Any], json.loads(json.dumps(entry)))


def _option(name: str, hint: Any, default: Any, helps: Mapping[str, str]) -> dict[str, Any]:
    """Return an option's entry; a dataclass has its fields as options `name.field`."""
    option = {"name": name, "type": type_name(hint), "help": helps.get(name, ""), "bounds": bounds.describe(hint)}
    if not dataclasses.is_dataclass(default):
        return option | {"default": default}
    _, inner = split_doc(inspect.getdoc(type(default)) or "")
    hints = bounds.hints_of(type(default))
    fields = [f.name for f in dataclasses.fields(default) if not _only_python(hints[f.name])]
    return option | {"fields": [_option(f, hints[f], getattr(default, f), inner) for f in fields]}


def _training(default: Fit) -> list[dict[str, Any]]:
    hints = bounds.hints_of(Fit)
    _, helps = split_doc(inspect.getdoc(Fit) or "")
    names = [f.name for f in dataclasses.fields(Fit) if f.name not in ("folder", "seed")]
    return [_option(n, hints[n], getattr(default, n), helps) for n in names]


def _only_python(hint: Any) -> bool:
    """Whether values of this type can be given in Python only, not on a command line."""
    union = typing.get_args(hint) if not isinstance(hint, type) else ()
    return hint is Callable or typing.get_origin(hint) is Callable or (
        bool(union) and "Callable" in str(hint) and str not in union
    )  # fmt: skip


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into the text before its sections and `{argument: help}`."""
    body, _, rest = doc.partition("\nArgs:\n")
    lines = re.split(r"\n(?=\S)", rest)[0]
    helps = {}
    for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", lines, re.M):
        helps[name] = " ".join(text.split())
    return body.strip(), helps


def type_name(hint: Any) -> str:
    """Return a type as users see it, without bounds: choices separated by |, else its name."""
    hint = _plain(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and not typing.get_args(hint):
        return str(hint.__name__)
    text = re.sub(r" \| didact\.types\.\w+", "", str(hint))  # a part that can be given in Python only
    text = text.replace("typing.", "").replace("collections.abc.Sequence", "list")
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
    return re.sub(r"\bdidact\.[\w.]*\.", "", text)


def _plain(hint: Any) -> Any:
    """Return an annotation without its bounds."""
    holder: Any = type("Holder", (), {"__annotations__": {"x": hint}})
    return typing.get_type_hints(holder)["x"]


if __name__ == "__main__":
    write()
