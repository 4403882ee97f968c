"""The catalogue: every method's name, needs, options and help, in one generated JSON file per method.

`python -m didact.catalogue.make` writes the files from signatures and docstrings; whatever only lists or explains
methods reads them and imports no torch. Other packages add methods by the entry point `didact.methods`, which names the
module that registers them; their entries are made when the catalogue is read.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from didact.data import convert
from didact.types import RECORDS, UserError

FOLDER = Path(__file__).parent
GROUP = "didact.methods"  # the entry point


class Family(NamedTuple):
    """The goal of a family's methods; `sides` names a metric's two numbers, if they are not before and after."""

    goal: str
    sides: tuple[str, str] | None = None


FAMILIES = {  # in the order of listings
    "prompting": Family("get more from a model without changing a weight"),
    "fewshot": Family("make it learn new tasks from a few labels"),
    "alignment": Family("make it do what people prefer"),
    "unlearning": Family("make it forget"),
    "pretraining": Family("train it, keep training it, train it big"),
    "synthesis": Family("make training data"),
    "control": Family("make it act"),
    "mechanisms": Family("see how it learns", ("reference", "measured")),
    "baselines": Family("what people use today, to compare with"),
}


@functools.cache
def read() -> dict[str, dict[str, Any]]:
    """Read all methods' entries, by name."""
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    entries += _installed({entry["name"] for entry in entries})
    order = {family: number for number, family in enumerate(FAMILIES)}
    entries.sort(key=lambda e: (order.get(e["family"], len(order)), e["family"], e["name"]))
    return {entry["name"]: entry for entry in entries}


def _installed(taken: set[str]) -> list[dict[str, Any]]:
    """Return entries of methods that other packages register; report and leave out a package that fails to."""
    points = importlib.metadata.entry_points(group=GROUP)
    if not points:
        return []
    make: Any = importlib.import_module("didact.catalogue.make")
    entries: list[dict[str, Any]] = []
    for point in points:
        package = point.dist.name if point.dist else point.value
        before = dict(make.METHODS)
        try:
            point.load()
            loaded = make.of_module(point.value.partition(":")[0])
        except Exception as error:
            print(f"didact: {package}: its methods cannot be used: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        for entry in loaded:
            if (name := entry["name"]) in taken:
                print(f"didact: {package}: there is a method '{name}' already: left out", file=sys.stderr)
                make.METHODS.pop(name)
                make.METHODS |= {name: before[name]} if name in before else {}
            else:
                entries.append(entry | {"package": package})
                taken.add(name)
    return entries


def entry(name: str) -> dict[str, Any]:
    """Return one method's entry.

    Raises:
        UserError: there is no such method; the message names the nearest.
    """
    methods = read()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(methods))}"
        raise UserError(f"unknown method '{name}': {hint} (`didact methods` lists them)")
    return methods[name]


def preset_of(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a preset; training options are called `fit.NAME`.

    Raises:
        UserError: the method has no such preset.
    """
    if name not in entry["presets"]:
        raise UserError(f"unknown preset '{name}' of {entry['name']}: {', '.join(entry['presets']) or 'it has none'}")
    return dict(entry["presets"][name])


def papers() -> list[str]:
    """Return the methods that have a claim: one per paper, by its slug, without variants."""
    own = (e for e in read().values() if not e["baseline"] and "package" not in e)
    return list(dict.fromkeys(e["name"].partition(".")[0] for e in own))


@functools.cache
def protocols() -> dict[str, dict[str, Any]]:
    """Read the protocols, by name: `kind` of record, `primary` measure, which records are `scored` and `held_out`,
    whether they can score a method that only `answers`, and their `rank` among those that rank arms, if they do."""
    paths = sorted((FOLDER / "protocols").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def scored(protocol: str, records: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Return those records, given by parameter or kind, that a protocol scores; empty if it can score none."""
    entry = protocols()[protocol]
    return (all(records.get(name) for name in entry["scored"]) and convert.of_kind(entry["kind"], records)) or ()


def kinds(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the record kind of every data option that a comparison of these methods takes, by name."""
    more = {name: p["kind"] for p in protocols().values() for name in p["beside"]}
    return more | {p: v["kind"] for e in entries for p, v in e["needs"].items()} | {kind: kind for kind in RECORDS}


def protocol_for(records: Mapping[str, Sequence[Any]]) -> str:
    """Return the name of the protocol that ranks arms on such records."""
    ranking = sorted((n for n, p in protocols().items() if p["rank"] is not None), key=lambda n: protocols()[n]["rank"])
    return next((name for name in ranking if scored(name, records)), "text")
