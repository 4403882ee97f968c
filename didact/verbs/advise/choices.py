"""Which methods can run on a user's files: the command for each, or what it lacks."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from didact import catalogue
from didact.types import UserError
from didact.verbs import early
from didact.verbs.advise.contents import File, Opened

ARMS = 4  # most arms of the suggested comparison
TESTS = {"test", "val", "valid", "validation", "dev", "eval", "heldout"}  # in a file's name
CHARACTERS_PER_TOKEN = 4  # roughly


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method and these files: the command that runs it, or what it lacks.

    `given` are the files by parameter; `named` is how many are named after theirs, 0 if no required one is.
    """

    method: str
    help: str
    command: str = ""
    given: dict[str, File] = field(default_factory=dict)
    named: int = 0
    lacks: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def choice(entry: Mapping[str, Any], files: Sequence[File], model: str | None) -> Choice:
    """Return the command for one method of the catalogue, or what it lacks."""
    needs = {n: v for n, v in entry["needs"].items() if v["kind"] != "model"}
    inputs = _assign(needs, files)
    lacks = [_need(name, v) for name, v in needs.items() if v["required"] and name not in inputs]
    if not inputs and not lacks:
        lacks = [_kind(name, v) for name, v in needs.items()] or ["nothing to read: it needs no file"]
    lacks += [_need(n, needs[n]) for n, f in inputs.items() if needs[n]["required"] and _lacks_fields(needs[n], f)]
    if inputs and not any(v["required"] for v in needs.values()) and inputs.keys() <= _retained():
        lacks.append(" or ".join(_kind(n, v) for n, v in needs.items() if n not in _retained()))
    words = ["didact", "run", entry["name"]]
    if entry["needs"].get("model", {}).get("required"):
        words += ["--model", model or "DIR"]
    for name in (n for n in needs if n in inputs):
        words += [_flag(name), inputs[name].path]
    renames: dict[str, str] = {}
    for ours, theirs in (pair for f in inputs.values() for pair in f.rename.items()):
        if renames.setdefault(ours, theirs) != theirs:  # --map applies to all files of a command
            lacks.append(f"one name for '{ours}': the files call it {renames[ours]} and {theirs}; rename it in one")
    kinds = {catalogue.protocols()[p]["kind"] for p in entry["protocol"]}
    tests = [f for f in files if f not in inputs.values() and TESTS & _words(f) and kinds & set(f.kinds[:1])]
    if tests and any(needs[n]["kind"] in kinds for n in inputs):
        words += ["--score-on", tests[0].path]
    words += _reading(inputs)
    without = [f"{_kind(n, v)}, {v['help']}" for n, v in needs.items() if n not in inputs and not v["required"]]
    matching = [n for n, f in inputs.items() if _role(f) == n]
    return Choice(
        method=entry["name"], help=entry["help"], command="" if lacks else shlex.join(words), given=inputs,
        named=len(matching) if any(needs[n]["required"] for n in matching) else 0, lacks=lacks, without=without,
    )  # fmt: skip


def _lacks_fields(need: Mapping[str, Any], file: File) -> bool:
    """Whether a file has none of the fields that a parameter's records must have (`pairs with ...`)."""
    text = need["help"].partition(";")[0]
    fields = re.findall(r"`(\w+)`", text) if re.search(r"^\w+ with (?!.*or without)", text) else []
    return bool(fields) and not set(fields) & {*file.fields, *file.rename}


def _retained() -> set[str]:
    """Return the parameters of data to be retained (`retain`, `general`), with which alone no method can run."""
    return {p["held_out"] for p in catalogue.protocols().values()} - {None}


def _reading(inputs: Mapping[str, File]) -> list[str]:
    """Return the options with which the files can be read."""
    names = {ours: theirs for f in inputs.values() for ours, theirs in f.rename.items()}
    words = ["--map", ",".join(f"{ours}={theirs}" for ours, theirs in names.items())] if names else []
    return [*words, *(["--skip-bad"] if any(f.bad for f in inputs.values()) else [])]


def ranked(choices: Sequence[Choice]) -> list[Choice]:
    """Rank choices: first those whose parameters the files are named after, then those whose kind of record they are,
    then those that use most files; a file of another name is a poor fit for a parameter that is no kind of record
    (`forget`). Choices that lack something come last, those that lack least first."""

    def key(choice: Choice) -> tuple[Any, ...]:
        entry = catalogue.entry(choice.method)
        needs = {n: entry["needs"][n] for n in choice.given}
        mismatch = sum(_mismatch(n, needs[n], f) for n, f in choice.given.items())
        close = sum(f.kinds[0] == needs[n]["kind"] for n, f in choice.given.items())
        plain = ("models" not in entry["gives"], not entry["baseline"], "." in choice.method)
        return len(choice.lacks), -choice.named, mismatch, -close, -len(choice.given), *plain

    return sorted(choices, key=key)


def _mismatch(name: str, need: Mapping[str, Any], file: File) -> int:
    """How badly a file fits a parameter: 2 if its name differs and the parameter is no kind of record (`forget`), and 1
    if it has none of the fields that the help names."""
    fields = re.findall(r"`(\w+)`", need["help"].partition(";")[0])
    other_name = _role(file) != name and name not in (need["kind"], f"{need['kind']}s")
    return 2 * other_name + (bool(fields) and not set(fields) & {*file.fields, *file.rename})


def compared(runs: Sequence[Choice], opened: Mapping[str, Opened], model: str | None) -> Choice | None:
    """Return the command that compares the best choice with others on the same files; None if there is none."""
    entries = catalogue.read()
    parts = {n for p in catalogue.protocols().values() for n in (*p["scored"], p["held_out"]) if n}
    for first in runs:
        by_name = any(n in parts for n in first.given)
        data = {(n if by_name else entries[first.method]["needs"][n]["kind"]): f for n, f in first.given.items()}
        same_kind = all(f.kinds[0] == entries[first.method]["needs"][n]["kind"] for n, f in first.given.items())
        if same_kind and len(data) == len(first.given) and (by_name or not set(entries[first.method]["needs"]) & parts):
            break
    else:
        return None
    records = {n: opened[f.path].records for n, f in data.items()}
    arms = []
    for run in runs:
        if not entries[run.method]["protocol"]:  # a study describes a model, and trains none to compare
            continue
        if {f.path for f in run.given.values()} == {f.path for f in data.values()} and run.method not in arms:
            with contextlib.suppress(UserError):
                early.check_arms([(run.method, entries[run.method])], records, None)
                arms.append(run.method)
    if len(arms) < 2 or first.method not in arms:
        return None
    characters = sum(len(text) for f in data.values() for text in opened[f.path].texts)
    words = ["didact", "compare", *arms[:ARMS], "--model", model or "DIR"]
    words += [word for n, f in data.items() for word in (_flag(n), f.path)]
    tokens = 9 * characters / CHARACTERS_PER_TOKEN  # three epochs; a trained token counts three times
    words += ["--budget", f"{_round(tokens)}-tokens"]
    words += _reading(data)
    return Choice(method="compare", help=f"{' and '.join(arms[:ARMS])}, side by side", command=shlex.join(words))


def _round(tokens: float) -> str:
    """Round a number of tokens to one digit, at least ten thousand."""
    number = int(float(f"{max(tokens, 1e4):.0e}"))
    return f"{number // 10**6}M" if number >= 10**6 else f"{number // 1000}k"


def _assign(needs: Mapping[str, Any], files: Sequence[File]) -> dict[str, File]:
    """Return the file for each parameter: the one named after it, else a free one of its kind, required ones first.

    Names only break ties, except that a file named after one parameter of a method is not used for another.
    """
    inputs: dict[str, File] = {}
    for name, need in needs.items():
        matching = [f for f in files if _role(f) == name and need["kind"] in f.kinds]
        inputs |= {name: matching[0]} if matching else {}
    for name, need in sorted(needs.items(), key=lambda item: not item[1]["required"]):
        free = [f for f in files if f not in inputs.values() and need["kind"] in f.kinds and _role(f) not in needs]
        if name not in inputs and free:
            inputs[name] = min(free, key=lambda f: (_split_order(f), _role(f) is not None, f.kinds.index(need["kind"])))
    return inputs


def _need(name: str, need: Mapping[str, Any]) -> str:
    return f"{_kind(name, need)}: {need['help'].partition(';')[0].rstrip('.')}"


def _role(file: File) -> str | None:
    """Return the parameter that a file is named after: `forget10.jsonl` is for --forget, of whatever method."""
    words = _words(file)
    roles = {n for e in catalogue.read().values() for n, v in e["needs"].items() if v["kind"] in file.kinds}
    return next((role for role in sorted(roles) if role in words or role.rstrip("s") in words), None)


def _words(file: File) -> set[str]:
    return set(re.split(r"[^a-z]+", Path(file.path).name.lower()))


def _split_order(file: File) -> int:
    """Return a sort key: 0 for files named as training data, 1 for others, 2 for test files."""
    return 1 + bool(TESTS & _words(file)) - bool({"train", "training"} & _words(file))


def _kind(name: str, need: Mapping[str, Any]) -> str:
    return f"{_flag(name)} ({need['kind']})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
