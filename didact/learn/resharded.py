"""Checkpoints that every process writes its part of, under the names of the whole model, and any other layout reads.

Weights and what the optimizer keeps of them go through `torch.distributed.checkpoint`; where the run stands is JSON.
The first process alone looks at the folder and tells the others.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import save as write

from didact import files
from didact.learn import checkpoint
from didact.learn.checkpoint import State
from didact.types import UserError

SLOTS = ("exp_avg", "exp_avg_sq", "step")
ALONE = ("optimizer",)  # fields of a state that lie in tensors


def save(
    root: Path, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State, who: dict[str, Any]
) -> Path:
    """Write `step-N` into a folder that all processes see; the one before stays."""
    place = root / f"step-{state.step:08d}"
    if first():
        for old in [p for p in _steps(root) if p != place][:-1]:
            shutil.rmtree(old, ignore_errors=True)
    with _folder(place) as fresh:
        write(_tensors(named, optimizer), checkpoint_id=fresh, no_dist=not dist.is_initialized())
        if first():
            told = {k: v for k, v in asdict(state).items() if k not in ALONE}
            (fresh / "state.json").write_text(json.dumps({"identity": who, **told}), encoding="utf-8")
    return place


def load(
    root: Path, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, who: dict[str, Any]
) -> State | None:
    """Take back the newest whole checkpoint of a folder, whatever layout wrote it; None where there is none.

    Raises:
        UserError: the folder belongs to another run, or all of it is damaged.
    """
    place, told = from_first(_newest(root, who) if first() else None)
    if place is None:
        if told:
            raise UserError(told)
        return None
    held = _tensors(named, optimizer)
    read(held, checkpoint_id=place, no_dist=not dist.is_initialized())
    return State(**told)


def first() -> bool:
    """Whether this is the first of all processes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_first(value: Any) -> Any:
    """What the first process has of a value."""
    held = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(held)
    return held[0]


def _tensors(named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights by name, and `name|slot` of Adam's, which are made where there has been no step."""
    out: dict[str, Tensor] = {}
    for name, p in named.items():
        slots = optimizer.state[p]
        if not slots:
            slots |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        out |= {name: p.data} | {f"{name}|{slot}": slots[slot] for slot in SLOTS}
    return out


def _newest(root: Path, who: dict[str, Any]) -> tuple[Path | None, Any]:
    """The newest whole checkpoint and where it stands; without one, why."""
    files.sweep(root)
    why = ""
    for place in reversed(_steps(root)):
        try:
            bad = files.damage(place) if files.mark(place) else "its .didact.json is missing or damaged"
            told = {} if bad else json.loads((place / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            bad = str(error)
        if bad:
            why = why or f"{root}: no checkpoint can be read ({place.name}: {bad}); remove this folder to begin anew"
            continue
        theirs, mine = told.pop("identity"), json.loads(json.dumps(who))
        if differing := [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]:
            return None, (
                f"{root}: a run with another {', '.join(differing)} was begun here; "
                "finish it, choose another --out, or remove the folder"
            )
        if why:
            print(f"didact: {why.split(';')[0]}; going on from {place.name}", file=sys.stderr)
        return place, told
    return None, why


def _steps(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("step-*") if checkpoint.STEP.fullmatch(p.name)) if root.is_dir() else []


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """A folder that the first process makes, all write into, and the first seals when all are done."""
    if not first():
        yield from_first(None)
        dist.barrier()
        dist.barrier()
        return
    with files.new_folder(place) as fresh:
        from_first(fresh)
        yield fresh
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.barrier()
