"""Sharded models: loaded, used and saved one weight or layer at a time, so that no process ever holds all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from didact.models import opening
from didact.parallel import mesh, parted, shards


def layers(module: nn.Module) -> list[Any]:
    """Return the layers of a transformers model; none for other modules."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


def opened(
    auto: opening.Part, path: str | Path, config: Any, dtype: torch.dtype, device: torch.device, parallel: str
) -> Any:
    """Open a model as `opening.open_pretrained` does, its layers sharded over the processes and the rest whole in each.

    Every process reads its rows of the files; if those name or shape weights differently from transformers, the first
    one reads all into its host's memory, and broadcasts them one by one.
    """
    module, info = opening.open_pretrained(auto, path, dtype=dtype, device_map="meta")
    over = mesh.over(parallel, device.type).layers
    rows = _rows_from_files(Path(path), module) or _rows_from_first(auto, path, module, dtype, device)
    with init_empty_weights(include_buffers=False):
        computed = dict(opening.build_from_config(auto, config).named_buffers())  # which no file holds
    state = module.state_dict()
    parted.fill(module, layers(module), over, rows, device)
    for prefix, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                full = f"{prefix}.{name}" if prefix else name
                value = rows(full, slice(None)).to(buffer.dtype) if full in state else computed[full]
                part._buffers[name] = value.to(device)
    return module, info


def _rows_from_files(folder: Path, module: nn.Module) -> parted.Rows | None:
    """Return a reader of rows of safetensors files; None if their names or shapes are not the module's."""
    files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []
    by_key = {key: file for file in files for key in file.keys()}  # noqa: SIM118  (it is no mapping)
    weights = module.state_dict(keep_vars=True)
    key_of = {id(t): name for name, t in weights.items() if name in by_key}  # a tied weight is stored once
    if any(id(t) not in key_of for t in weights.values()):
        return None
    if any(by_key[key_of[id(t)]].get_slice(key_of[id(t)]).get_shape() != list(t.shape) for t in weights.values()):
        return None

    def rows(name: str, part: slice) -> Tensor:
        key = key_of[id(weights[name])]
        if part.start is not None and part.start >= part.stop:
            return torch.empty(0)
        return by_key[key].get_slice(key)[part] if weights[name].dim() else by_key[key].get_tensor(key)

    return rows


def _rows_from_first(
    auto: opening.Part, path: str | Path, module: nn.Module, dtype: torch.dtype, device: torch.device
) -> parted.Rows:
    """Return a reader of rows that the first process broadcasts; all must read the same weights in the same order."""
    weights = module.state_dict()
    whole = opening.open_pretrained(auto, path, dtype=dtype)[0].state_dict() if dist.get_rank() == 0 else {}

    def rows(name: str, part: slice) -> Tensor:
        weight = weights[name]
        value = whole[name].to(device) if whole else torch.empty(weight.shape, dtype=weight.dtype, device=device)
        dist.broadcast(value, 0)
        return value[part] if value.dim() else value

    return rows


def is_sharded(module: nn.Module) -> bool:
    """Whether any weight is sharded over processes."""
    return shards.spread(module.parameters())


def is_follower(module: nn.Module) -> bool:
    """Whether it is sharded over processes and another one than this writes its files."""
    return is_sharded(module) and dist.get_rank() > 0


def agreed(module: nn.Module, found: bool) -> bool:
    """Whether all processes found something, if a model is sharded over them: else some would wait for the others."""
    if not is_sharded(module):
        return found
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, found)
    return all(answers)


def gather(module: nn.Module) -> dict[str, Tensor]:
    """Gather weights by name, one after the other, into the first process's host memory: all processes must call it.

    Of an adapter without its base model's.
    """
    state, gathered = module.state_dict(), dict[str, Tensor]()
    adapter = bool(getattr(module, "peft_config", None))
    for name, weight in state.items():
        if not shards.spread([weight]):
            gathered[name] = weight
        elif not adapter:
            whole = shards.whole(weight)
            if dist.get_rank() == 0:
                gathered[name] = whole.cpu()
            del whole
    return gathered
