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

ARMS = 4  # of a comparison that is suggested
TESTS = {"test", "val", "valid", "validation", "dev", "eval", "heldout"}  # in a file's name
LETTERS = 4  # a token, more or less


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method and these files: the command that runs it, or what it lacks.

    `given` are the files by parameter, `named` is how many of them bear its name, where one that it requires does.
    """

    method: str
    help: str
    command: str = ""
    given: dict[str, File] = field(default_factory=dict)
    named: int = 0
    lacks: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def choice(entry: Mapping[str, Any], files: Sequence[File], model: str | None) -> Choice:
    """The command for one method of the catalogue."""
    needs = {n: v for n, v in entry["needs"].items() if v["kind"] != "model"}
    given = _assigned(needs, files)
    lacks = [_lack(name, v) for name, v in needs.items() if v["required"] and name not in given]
    if not given and not lacks:
        lacks = [_kind(name, v) for name, v in needs.items()] or ["nothing to read: it needs no file"]
    lacks += [_lack(n, needs[n]) for n, f in given.items() if needs[n]["required"] and _bare(needs[n], f)]
    if given and not any(v["required"] for v in needs.values()) and given.keys() <= _kept():
        lacks.append(" or ".join(_kind(n, v) for n, v in needs.items() if n not in _kept()))
    words = ["didact", "run", entry["name"]]
    if entry["needs"].get("model", {}).get("required"):
        words += ["--model", model or "DIR"]
    for name in (n for n in needs if n in given):
        words += [_flag(name), given[name].path]
    renames: dict[str, str] = {}
    for ours, theirs in (pair for f in given.values() for pair in f.rename.items()):
        if renames.setdefault(ours, theirs) != theirs:  # --map is for all files of a command
            lacks.append(f"one name for '{ours}': the files call it {renames[ours]} and {theirs}; rename it in one")
    kinds = {catalogue.protocols()[p]["kind"] for p in entry["protocol"]}
    tests = [f for f in files if f not in given.values() and TESTS & _words(f) and kinds & set(f.kinds[:1])]
    if tests and any(needs[n]["kind"] in kinds for n in given):
        words += ["--score-on", tests[0].path]
    words += _renaming(given)
    if any(f.bad for f in given.values()):
        words.append("--skip-bad")
    without = [f"{_kind(n, v)}, {v['help']}" for n, v in needs.items() if n not in given and not v["required"]]
    mine = [n for n, f in given.items() if _role(f) == n]
    return Choice(
        method=entry["name"], help=entry["help"], command="" if lacks else shlex.join(words), given=given,
        named=len(mine) if any(needs[n]["required"] for n in mine) else 0, lacks=lacks, without=without,
    )  # fmt: skip


def _bare(need: Mapping[str, Any], file: File) -> bool:
    """Whether a file has none of the fields that a parameter's records must come with (`pairs with ...`)."""
    told = need["help"].partition(";")[0]
    fields = re.findall(r"`(\w+)`", told) if re.search(r"^\w+ with (?!.*or without)", told) else []
    return bool(fields) and not set(fields) & {*file.fields, *file.rename}


def _kept() -> set[str]:
    """Parameters of what must stay as it is (`retain`, `general`): alone they give a method nothing to do."""
    return {p["held_out"] for p in catalogue.protocols().values()} - {None}


def _renaming(given: Mapping[str, File]) -> list[str]:
    names = {ours: theirs for f in given.values() for ours, theirs in f.rename.items()}
    return ["--map", ",".join(f"{ours}={theirs}" for ours, theirs in names.items())] if names else []


def ranked(choices: Sequence[Choice]) -> list[Choice]:
    """Those first whose parameters files are named after, whose own kind of record the files are, that use most of
    them; a parameter that is no kind of record (`forget`) is not meant by a file of another name. Of those that lack,
    the ones first that lack least."""

    def key(choice: Choice) -> tuple[Any, ...]:
        entry = catalogue.entry(choice.method)
        needs = {n: entry["needs"][n] for n in choice.given}
        alien = sum(_alien(n, needs[n], f) for n, f in choice.given.items())
        close = sum(f.kinds[0] == needs[n]["kind"] for n, f in choice.given.items())
        plain = ("models" not in entry["gives"], not entry["baseline"], "." in choice.method)
        return len(choice.lacks), -choice.named, alien, -close, -len(choice.given), *plain

    return sorted(choices, key=key)


def _alien(name: str, need: Mapping[str, Any], file: File) -> int:
    """How little a file is what a parameter is for: of another name than a part that is no kind of record (`forget`),
    without the fields that are spoken of."""
    fields = re.findall(r"`(\w+)`", need["help"].partition(";")[0])
    other = _role(file) != name and name not in (need["kind"], f"{need['kind']}s")
    return 2 * other + (bool(fields) and not set(fields) & {*file.fields, *file.rename})


def compared(runs: Sequence[Choice], opened: Mapping[str, Opened], model: str | None) -> Choice | None:
    """The command that sets the best of the choices side by side with others on the same files, where they can be."""
    whole = catalogue.read()
    parts = {n for p in catalogue.protocols().values() for n in (*p["scored"], p["held_out"]) if n}
    for first in runs:
        by_name = any(n in parts for n in first.given)
        data = {(n if by_name else whole[first.method]["needs"][n]["kind"]): f for n, f in first.given.items()}
        own = all(f.kinds[0] == whole[first.method]["needs"][n]["kind"] for n, f in first.given.items())
        if own and len(data) == len(first.given) and (by_name or not set(whole[first.method]["needs"]) & parts):
            break
    else:
        return None
    records = {n: opened[f.path].records for n, f in data.items()}
    arms = []
    for run in runs:
        if not whole[run.method]["protocol"]:  # a study tells of a model, and teaches none to be set beside others
            continue
        if {f.path for f in run.given.values()} == {f.path for f in data.values()} and run.method not in arms:
            with contextlib.suppress(UserError):
                early.able([(run.method, whole[run.method])], records, None)
                arms.append(run.method)
    if len(arms) < 2 or first.method not in arms:
        return None
    letters = sum(len(text) for f in data.values() for text in opened[f.path].texts)
    words = ["didact", "compare", *arms[:ARMS], "--model", model or "DIR"]
    words += [word for n, f in data.items() for word in (_flag(n), f.path)]
    words += [
        "--budget",
        f"{_round(9 * letters / LETTERS)}-tokens",
    ]  # three epochs; trained, a token counts three times
    words += first.command.split()[-2:] if any(f.rename for f in data.values()) else []
    return Choice(method="compare", help=f"{' and '.join(arms[:ARMS])}, side by side", command=shlex.join(words))


def _round(tokens: float) -> str:
    """A number of tokens with one digit, at least ten thousand."""
    number = int(float(f"{max(tokens, 1e4):.0e}"))
    return f"{number // 10**6}M" if number >= 10**6 else f"{number // 1000}k"


def _assigned(needs: Mapping[str, Any], files: Sequence[File]) -> dict[str, File]:
    """Which file each parameter gets: the one named after it, else a free one of its kind, required ones first.

    A name breaks ties and excludes nothing, but that a file named after one parameter of a method is not its other.
    """
    given: dict[str, File] = {}
    for name, need in needs.items():
        named = [f for f in files if _role(f) == name and need["kind"] in f.kinds]
        given |= {name: named[0]} if named else {}
    for name, need in sorted(needs.items(), key=lambda item: not item[1]["required"]):
        free = [f for f in files if f not in given.values() and need["kind"] in f.kinds and _role(f) not in needs]
        if name not in given and free:
            given[name] = min(free, key=lambda f: (_is_test(f), _role(f) is not None, f.kinds.index(need["kind"])))
    return given


def _lack(name: str, need: Mapping[str, Any]) -> str:
    return f"{_kind(name, need)}: {need['help'].partition(';')[0].rstrip('.')}"


def _role(file: File) -> str | None:
    """The parameter a file is named after: `forget10.jsonl` is what --forget takes, whichever method has it."""
    words = _words(file)
    roles = {n for e in catalogue.read().values() for n, v in e["needs"].items() if v["kind"] in file.kinds}
    return next((role for role in sorted(roles) if role in words or role.rstrip("s") in words), None)


def _words(file: File) -> set[str]:
    return set(re.split(r"[^a-z]+", Path(file.path).name.lower()))


def _is_test(file: File) -> int:
    """Training files before those that say nothing, and these before test files."""
    return 1 + bool(TESTS & _words(file)) - bool({"train", "training"} & _words(file))


def _kind(name: str, need: Mapping[str, Any]) -> str:
    return f"{_flag(name)} ({need['kind']})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
