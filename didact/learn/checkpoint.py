"""Crash-safe checkpoints: safetensors + JSON, written to a temporary folder and renamed, one folder per step.

Each holds the SHA-256 of its files, and the last two are kept: a damaged one costs the steps since the one before.
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
    """State of a training run: what the next step needs besides the weights."""

    step: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)
    micro_tokens: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0


def save(
    folder: str | Path, weights: Mapping[str, Tensor], state: State, identity: dict[str, Any], spread: bool = False
) -> Path:
    """Write `step-N` into `folder` and keep the one before, so that damage to the newest does not cost the run.

    Weights that are sharded over processes, or `spread` whole over them, are written by all processes, each its part.

    Raises:
        UserError: the disk is full or the folder cannot be written; the previous checkpoint stays.
    """
    root = Path(folder)
    path = root / f"step-{state.step:08d}"
    try:
        if distributed.group_rank()[0] == 0:
            for stale in [p for p in _all(root) if p != path and not files.foreign(p)][:-1]:
                shutil.rmtree(stale, ignore_errors=True)
        spread = spread or shards.spread(weights.values())
        with _new_folder(path, spread) as target:
            if spread:
                shards.write(target / shards.FOLDER, {**weights, **state.optimizer})
            else:
                save_file(_on_cpu(weights), str(target / "weights.safetensors"))
                save_file(_on_cpu(state.optimizer), str(target / "optimizer.safetensors"))
            fields = {
                "step": state.step,
                "hooks": state.hooks,
                "history": state.history,
                "tokens": state.tokens,
                "micro_tokens": state.micro_tokens,
            }
            if distributed.group_rank()[0] == 0 or not spread:
                (target / "state.json").write_text(json.dumps({"identity": identity, **fields}), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full"
        else:
            reason = error.strerror or str(error)
        raise UserError(_save_error(root, reason)) from None
    except SafetensorError as error:  # wraps the error of the operating system
        full = any(text in str(error) for text in ("No space left", "os error 28", "os error 122", "StorageFull"))
        raise UserError(_save_error(root, "the disk is full" if full else str(error))) from None
    return path


def load(
    folder: str | Path, identity: dict[str, Any], like: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], State] | None:
    """Load the newest undamaged checkpoint in `folder`, or None where there is no checkpoint.

    With `like`, load only the tensors of its weights, sharded as `like[name]` is, however many processes wrote them.
    Damaged checkpoints are renamed to `damaged-step-N`, with a line on stderr.

    Raises:
        UserError: the folder belongs to a run with other options, data or weights, or all checkpoints are damaged.
    """
    root = Path(folder)
    files.sweep(root)
    damaged: list[tuple[Path, str]] = []
    for path in reversed(_all(root)):
        try:
            weights, state, saved = _read(path, like or {})
        except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
            damaged.append((path, f"{path.name}: {(str(error) or type(error).__name__).splitlines()[0]}"))
            continue
        expected = json.loads(json.dumps(identity))
        if differing := [k for k in {**expected, **saved} if expected.get(k) != saved.get(k)]:
            raise UserError(
                f"{root}: a run with another {', '.join(differing)} was begun here; "
                "finish it, choose another --out, or remove the folder"
            )
        for broken, reason in damaged:
            _set_aside(broken, f"{reason}; resuming from {path.name}")
        return weights, state
    if damaged:
        raise UserError(f"{root}: no checkpoint can be read ({damaged[0][1]}); remove this folder to start over")
    return None


def resume_message(folder: str | Path) -> str:
    """Say from where a run with checkpoints anywhere under `folder` resumes."""
    checkpoints = [p for p in Path(folder).rglob("step-*") if STEP.fullmatch(p.name)]
    newest = max(checkpoints, key=lambda p: p.stat().st_mtime, default=None)
    if newest is None:
        return "no checkpoint was written yet: the same command starts over"
    phase = newest.parent.relative_to(folder)
    return f"the same command resumes from step {int(newest.name.removeprefix('step-'))} of {phase}"


def remove(folder: str | Path) -> None:
    """Remove the checkpoints in `folder`, and the folder too if nothing else is in it."""
    for path in _all(Path(folder)):
        if not files.foreign(path):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        if {p.name for p in Path(folder).iterdir()} == {folders.LOCK}:
            (Path(folder) / folders.LOCK).unlink()
        Path(folder).rmdir()


def _read(path: Path, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State, dict[str, Any]]:
    """Read one checkpoint and the identity of its run; damage raises whatever the readers raise."""
    if not files.mark(path):
        raise ValueError("its .didact.json is missing or damaged")
    if reason := files.damage(path):
        raise ValueError(reason)
    fields = json.loads((path / "state.json").read_text(encoding="utf-8"))
    identity = fields.pop("identity")
    if (path / shards.FOLDER).is_dir():
        tensors = shards.read(path / shards.FOLDER, like)
        weights = {k: v for k, v in tensors.items() if "|" not in k}
        optimizer = {k: v for k, v in tensors.items() if "|" in k}
    else:
        weights, optimizer = load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors")
        if like:
            weights = {k: shards.like(v, like[k]) for k, v in weights.items() if k in like}
            owned = {k: like.get(k.split("|")[0]) for k in optimizer}
            optimizer = {k: shards.like(optimizer[k], weight) for k, weight in owned.items() if weight is not None}
    return weights, State(optimizer=optimizer, **fields), identity


@contextlib.contextmanager
def _new_folder(path: Path, spread: bool) -> Iterator[Path]:
    """Yield a new folder to fill, by all processes if `spread`; the first one creates it and moves it to `path`."""
    if not spread:
        with files.new_folder(path) as target:
            yield target
        return
    with files.new_folder(path) if distributed.group_rank()[0] == 0 else contextlib.nullcontext(path) as created:
        yield Path(distributed.from_first([str(created)])[0])
        distributed.wait()
    distributed.wait()


def _set_aside(path: Path, reason: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # only one process renames
        aside = path.with_name(f"damaged-{path.name}")
        while os.path.lexists(aside):
            aside = aside.with_name(f"{aside.name}-again")
        with contextlib.suppress(OSError):
            os.replace(path, aside)
        print(f"didact: {path.parent}: {reason}", file=sys.stderr)


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Lock the folder: inside the block no other training writes checkpoints into it.

    Raises:
        UserError: another training holds the lock.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with folders.claimed(folder) as holder:
        if holder is not None:
            raise UserError(f"another training writes its checkpoints to {folder}: {holder}; use another folder")
        yield


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, Tensor]:
    """An optimizer's state as `{parameter name}|{slot}` tensors."""
    return {
        f"{names[p]}|{slot}": torch.as_tensor(v) for p, slots in optimizer.state.items() for slot, v in slots.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        parameter = parameters[name]
        tensor = value if slot == "step" else shards.like(value, parameter)
        optimizer.state.setdefault(parameter, {})[slot] = tensor.clone()


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def _all(root: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(p for p in root.glob("step-*") if STEP.fullmatch(p.name)) if root.is_dir() else []


def _save_error(root: Path, reason: str) -> str:
    existing = _all(root)
    hint = (
        f"the checkpoint {existing[-1].name} before it is intact and the same command resumes from it"
        if existing
        else "no checkpoint was written yet"
    )
    return f"{root}: saving failed: {reason}; {hint}"
