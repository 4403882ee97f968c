"""Checkpoints a kill cannot spoil: safetensors + JSON, written beside and renamed, one folder a step.

Each has the SHA-256 of its files, and the last two are kept: a damaged one costs the steps since the one before.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from didact import files, folders
from didact.learn import distributed
from didact.parallel import shards
from didact.types import UserError

STEP = re.compile(r"step-\d{8,}")


@dataclass
class State:
    """Where a training run stands: what the next step needs beside the weights."""

    step: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)
    micro_tokens: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0


def save(
    folder: str | Path, weights: Mapping[str, Tensor], state: State, identity: dict[str, Any], spread: bool = False
) -> Path:
    """Write `step-N` into `folder`, where the one before stays too: no damage to the newest costs the run.

    Weights that lie over processes, or are `spread` whole over them, are written by all, each its part.

    Raises:
        UserError: the disk is full or the folder cannot be written; the previous checkpoint stays.
    """
    root = Path(folder)
    place = root / f"step-{state.step:08d}"
    try:
        if distributed.here()[0] == 0:
            for old in [p for p in _all(root) if p != place and not files.foreign(p)][:-1]:
                shutil.rmtree(old, ignore_errors=True)
        spread = spread or shards.spread(weights.values())
        with _together(place, spread) as fresh:
            if spread:
                shards.write(fresh / shards.FOLDER, {**weights, **state.optimizer})
            else:
                save_file(_own(weights), str(fresh / "weights.safetensors"))
                save_file(_own(state.optimizer), str(fresh / "optimizer.safetensors"))
            rest = {
                "step": state.step,
                "hooks": state.hooks,
                "history": state.history,
                "tokens": state.tokens,
                "micro_tokens": state.micro_tokens,
            }
            if distributed.here()[0] == 0 or not spread:
                (fresh / "state.json").write_text(json.dumps({"identity": identity, **rest}), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full"
        else:
            why = error.strerror or str(error)
        raise UserError(_failed(root, why)) from None
    except SafetensorError as error:  # it wraps what the system said
        full = any(sign in str(error) for sign in ("No space left", "os error 28", "os error 122", "StorageFull"))
        raise UserError(_failed(root, "the disk is full" if full else str(error))) from None
    return place


def load(
    folder: str | Path, identity: dict[str, Any], over: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], State] | None:
    """The newest checkpoint in `folder` that is as it was written, or None where there is none.

    Given `over`, only what belongs to its weights, lying over processes as `over[name]` does, however many wrote it.
    Damaged ones are set aside as `damaged-step-N`, in a line on stderr.

    Raises:
        UserError: the folder belongs to a run with other options, data or weights, or all of it is damaged.
    """
    root = Path(folder)
    files.sweep(root)
    damaged: list[tuple[Path, str]] = []
    for place in reversed(_all(root)):
        try:
            weights, state, theirs = _read(place, over or {})
        except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
            damaged.append((place, f"{place.name}: {(str(error) or type(error).__name__).splitlines()[0]}"))
            continue
        mine = json.loads(json.dumps(identity))
        if differing := [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]:
            raise UserError(
                f"{root}: a run with another {', '.join(differing)} was begun here; "
                "finish it, choose another --out, or remove the folder"
            )
        for bad, why in damaged:
            _set_aside(bad, f"{why}; going on from {place.name}")
        return weights, state
    if damaged:
        raise UserError(f"{root}: no checkpoint can be read ({damaged[0][1]}); remove this folder to begin anew")
    return None


def told(folder: str | Path) -> str:
    """From where a run whose checkpoints lie anywhere in `folder` goes on, in words."""
    found = [p for p in Path(folder).rglob("step-*") if STEP.fullmatch(p.name)]
    newest = max(found, key=lambda p: p.stat().st_mtime, default=None)
    if newest is None:
        return "no checkpoint was written yet: the same command begins anew"
    where = newest.parent.relative_to(folder)
    return f"the same command goes on from step {int(newest.name.removeprefix('step-'))} of {where}"


def remove(folder: str | Path) -> None:
    """Remove the checkpoints in `folder`, and it if nothing else is left."""
    for place in _all(Path(folder)):
        if not files.foreign(place):
            shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        if {p.name for p in Path(folder).iterdir()} == {folders.LOCK}:
            (Path(folder) / folders.LOCK).unlink()
        Path(folder).rmdir()


def _read(place: Path, over: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State, dict[str, Any]]:
    """One checkpoint, with whose it is; raises whatever its damage makes the readers raise."""
    if not files.mark(place):
        raise ValueError("its .didact.json is missing or damaged")
    if why := files.damage(place):
        raise ValueError(why)
    rest = json.loads((place / "state.json").read_text(encoding="utf-8"))
    identity = rest.pop("identity")
    if (place / shards.FOLDER).is_dir():
        kept = shards.read(place / shards.FOLDER, over)
        weights = {k: v for k, v in kept.items() if "|" not in k}
        optimizer = {k: v for k, v in kept.items() if "|" in k}
    else:
        weights, optimizer = load_file(place / "weights.safetensors"), load_file(place / "optimizer.safetensors")
        if over:
            weights = {k: shards.like(v, over[k]) for k, v in weights.items() if k in over}
            owned = {k: over.get(k.split("|")[0]) for k in optimizer}
            optimizer = {k: shards.like(optimizer[k], weight) for k, weight in owned.items() if weight is not None}
    return weights, State(optimizer=optimizer, **rest), identity


@contextlib.contextmanager
def _together(place: Path, spread: bool) -> Iterator[Path]:
    """A new folder at `place` to fill, by all processes where they are to; the first one makes and seals it."""
    if not spread:
        with files.new_folder(place) as fresh:
            yield fresh
        return
    with files.new_folder(place) if distributed.here()[0] == 0 else contextlib.nullcontext(place) as mine:
        yield Path(distributed.from_first([str(mine)])[0])
        distributed.wait()
    distributed.wait()


def _set_aside(place: Path, why: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes one renames
        aside = place.with_name(f"damaged-{place.name}")
        while os.path.lexists(aside):
            aside = aside.with_name(f"{aside.name}-again")
        with contextlib.suppress(OSError):
            os.replace(place, aside)
        print(f"didact: {place.parent}: {why}", file=sys.stderr)


@contextlib.contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Inside the block no other caller writes checkpoints into this folder.

    Raises:
        UserError: one is at it.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with folders.claimed(folder) as other:
        if other is not None:
            raise UserError(f"another training keeps its checkpoints in {folder}: {other}; give it another folder")
        yield


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, Tensor]:
    """An optimizer's state as `{parameter name}|{slot}` tensors."""
    return {
        f"{names[p]}|{slot}": torch.as_tensor(v) for p, slots in optimizer.state.items() for slot, v in slots.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], named: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        parameter = named[name]
        at = value if slot == "step" else shards.like(value, parameter)
        optimizer.state.setdefault(parameter, {})[slot] = at.clone()


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def _all(root: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(p for p in root.glob("step-*") if STEP.fullmatch(p.name)) if root.is_dir() else []


def _failed(root: Path, why: str) -> str:
    kept = _all(root)
    rest = (
        f"the checkpoint {kept[-1].name} before it is kept and the same command resumes from it"
        if kept
        else "no checkpoint was written yet"
    )
    return f"{root}: saving failed: {why}; {rest}"
