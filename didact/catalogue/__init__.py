"""The catalogue: every method's name, needs, options and help, one generated JSON file a method.

`python -m didact.catalogue.make` writes the files from signatures and docstrings; everything that only lists or
explains reads them and imports no torch. Methods of other packages come in by the entry point `didact.methods`, which
names the module that registers them; their entries are made when they are read.
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
    """What the user wants, and what the two numbers of a metric are where the family's methods measure themselves."""

    wanted: str
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
    """All methods by name."""
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    entries += _installed({entry["name"] for entry in entries})
    order = {family: number for number, family in enumerate(FAMILIES)}
    entries.sort(key=lambda e: (order.get(e["family"], len(order)), e["family"], e["name"]))
    return {entry["name"]: entry for entry in entries}


def _installed(known: set[str]) -> list[dict[str, Any]]:
    """Entries of methods that other packages register; a package that fails to is told and left out."""
    found = importlib.metadata.entry_points(group=GROUP)
    if not found:
        return []
    make: Any = importlib.import_module("didact.catalogue.make")
    entries: list[dict[str, Any]] = []
    for point in found:
        package = point.dist.name if point.dist else point.value
        before = dict(make.METHODS)
        try:
            point.load()
            made = make.of_module(point.value.partition(":")[0])
        except Exception as error:
            print(f"didact: {package}: its methods cannot be used: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        for one in made:
            if (name := one["name"]) in known:
                print(f"didact: {package}: there is a method '{name}' already: left out", file=sys.stderr)
                make.METHODS.pop(name)
                make.METHODS |= {name: before[name]} if name in before else {}
            else:
                entries.append(one | {"package": package})
                known.add(name)
    return entries


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


def preset_of(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """The options of a preset; training options are called `fit.NAME`.

    Raises:
        UserError: the method has no such preset.
    """
    if name not in entry["presets"]:
        raise UserError(f"unknown preset '{name}' of {entry['name']}: {', '.join(entry['presets']) or 'it has none'}")
    return dict(entry["presets"][name])


def papers() -> list[str]:
    """The methods that have a claim: every paper's once, by its slug, whatever variants it has."""
    ours = (e for e in read().values() if not e["baseline"] and "package" not in e)
    return list(dict.fromkeys(e["name"].partition(".")[0] for e in ours))


@functools.cache
def protocols() -> dict[str, dict[str, Any]]:
    """The protocols by name: `kind` of record, `primary` measure, what is `scored` and `held_out`, whether what only
    `answers` can be scored, and their `rank` among those that rank arms, where they do."""
    paths = sorted((FOLDER / "protocols").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def scored(protocol: str, records: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Those of the records, given by parameter or kind, that a protocol scores; empty where it can score none."""
    known = protocols()[protocol]
    return (all(records.get(name) for name in known["scored"]) and convert.of_kind(known["kind"], records)) or ()


def kinds(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The kind of every set of records that a comparison of these methods may be given, by the set's name."""
    of = {name: p["kind"] for p in protocols().values() for name in p["beside"]}
    return of | {p: need["kind"] for e in entries for p, need in e["needs"].items()} | {kind: kind for kind in RECORDS}


def protocol_for(records: Mapping[str, Sequence[Any]]) -> str:
    """The name of the protocol that ranks arms on such records."""
    ranking = sorted((n for n, p in protocols().items() if p["rank"] is not None), key=lambda n: protocols()[n]["rank"])
    return next((name for name in ranking if scored(name, records)), "text")
