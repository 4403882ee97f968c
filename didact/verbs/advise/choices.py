"""Which methods can run on a user's files: the command for each, or what it lacks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from didact import catalogue
from didact.verbs.advise.contents import File


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method and these files: the command that runs it, or what it lacks."""

    method: str
    help: str
    command: str = ""
    lacks: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def choice(entry: Mapping[str, Any], files: Sequence[File], model: str | None) -> Choice:
    """The command for one method of the catalogue."""
    needs = {n: v for n, v in entry["needs"].items() if v["kind"] != "model"}
    given = _assigned(needs, files)
    lacks = [_lack(name, v, files) for name, v in needs.items() if v["required"] and name not in given]
    if not given and not lacks:
        lacks = [_kind(name, v) for name, v in needs.items()] or ["nothing to read: it needs no file"]
    words = ["didact", "run", entry["name"]]
    if entry["needs"].get("model", {}).get("required"):
        words += ["--model", model or "DIR"]
    for name in (n for n in needs if n in given):
        words += [_flag(name), given[name].path]
    renames: dict[str, str] = {}
    for ours, theirs in (pair for f in given.values() for pair in f.rename.items()):
        if renames.setdefault(ours, theirs) != theirs:  # --map is for all files of a command
            lacks.append(f"one name for '{ours}': the files call it {renames[ours]} and {theirs}; rename it in one")
    if renames:
        words += ["--map", ",".join(f"{ours}={theirs}" for ours, theirs in renames.items())]
    if any(f.bad for f in given.values()):
        words.append("--skip-bad")
    without = [f"{_kind(n, v)}, {v['help']}" for n, v in needs.items() if n not in given and not v["required"]]
    command = "" if lacks else shlex.join(words)
    return Choice(method=entry["name"], help=entry["help"], command=command, lacks=lacks, without=without)


def _assigned(needs: Mapping[str, Any], files: Sequence[File]) -> dict[str, File]:
    """Which file each parameter gets: the one named after it, else a free one of its kind, required ones first."""
    given: dict[str, File] = {}
    for name, need in needs.items():
        named = [f for f in files if _role(f) == name and need["kind"] in f.kinds]
        given |= {name: named[0]} if named else {}
    for name, need in sorted(needs.items(), key=lambda item: not item[1]["required"]):
        free = [f for f in files if f not in given.values() and need["kind"] in f.kinds and _role(f) is None]
        if name not in given and free:
            given[name] = free[0]
    return given


def _lack(name: str, need: Mapping[str, Any], files: Sequence[File]) -> str:
    kept = [
        f"{f.path} is such a file, but its name says {_flag(_role(f) or '')}" for f in files if need["kind"] in f.kinds
    ]
    return f"{_kind(name, need)}: " + (kept[0] if kept else need["help"].partition(";")[0].rstrip("."))


def _role(file: File) -> str | None:
    """The parameter a file is named after: `forget10.jsonl` is what --forget takes, whichever method has it."""
    words = re.split(r"[^a-z]+", Path(file.path).name.lower())
    roles = {n for e in catalogue.read().values() for n, v in e["needs"].items() if v["kind"] in file.kinds}
    return next((role for role in sorted(roles) if role in words or role.rstrip("s") in words), None)


def _kind(name: str, need: Mapping[str, Any]) -> str:
    return f"{_flag(name)} ({need['kind']})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
