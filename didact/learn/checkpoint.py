"""Checkpoints a kill cannot spoil: safetensors + JSON, written beside and renamed, one folder a step."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from didact import files
from didact.types import UserError


@dataclass
class State:
    """Where a training run stands: what the next step needs beside the weights."""

    step: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)
    micro_tokens: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0


def save(folder: str | Path, weights: Mapping[str, Tensor], state: State, identity: dict[str, Any]) -> Path:
    """Write `step-N` into `folder`, then remove older ones.

    Raises:
        UserError: the disk is full or the folder cannot be written; the previous checkpoint stays.
    """
    root = Path(folder)
    place = root / f"step-{state.step:08d}"
    try:
        with files.new_folder(place) as fresh:
            save_file(_own(weights), str(fresh / "weights.safetensors"))
            save_file(_own(state.optimizer), str(fresh / "optimizer.safetensors"))
            rest = {
                "step": state.step,
                "hooks": state.hooks,
                "history": state.history,
                "tokens": state.tokens,
                "micro_tokens": state.micro_tokens,
            }
            (fresh / "state.json").write_text(json.dumps({"identity": identity, **rest}))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full"
        else:
            why = error.strerror or str(error)
        raise UserError(_failed(root, why)) from None
    except SafetensorError as error:  # it wraps what the system said
        full = any(sign in str(error) for sign in ("No space left", "os error 28", "os error 122", "StorageFull"))
        raise UserError(_failed(root, "the disk is full" if full else str(error))) from None
    for old in _all(root)[:-1]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def load(folder: str | Path, identity: dict[str, Any]) -> tuple[dict[str, Tensor], State] | None:
    """The newest checkpoint in `folder`, or None.

    Raises:
        UserError: the folder belongs to a run with other options, data or weights.
    """
    root = Path(folder)
    files.sweep(root)
    found = _all(root)
    if not found:
        return None
    newest = found[-1]
    rest = json.loads((newest / "state.json").read_text())
    theirs = rest.pop("identity")
    mine = json.loads(json.dumps(identity))
    if differing := [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]:
        raise UserError(
            f"{root}: a run with another {', '.join(differing)} was begun here; "
            "finish it, choose another --out, or remove the folder"
        )
    for old in found[:-1]:  # a kill came between writing the newest and removing these
        shutil.rmtree(old, ignore_errors=True)
    return load_file(newest / "weights.safetensors"), State(
        optimizer=load_file(newest / "optimizer.safetensors"), **rest
    )


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
        at = value if slot == "step" else value.to(parameter.device)
        optimizer.state.setdefault(parameter, {})[slot] = at.clone()


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def _all(root: Path) -> list[Path]:
    return sorted(root.glob("step-*")) if root.is_dir() else []


def _failed(root: Path, why: str) -> str:
    kept = _all(root)
    rest = (
        f"the checkpoint {kept[-1].name} before it is kept and the same command resumes from it"
        if kept
        else "no checkpoint was written yet"
    )
    return f"{root}: saving failed: {why}; {rest}"
