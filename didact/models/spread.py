"""Models that no process ever holds whole: loaded, used and saved in parts, one weight or layer at a time."""

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
    """The layers of a transformers model; none in others."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


def opened(
    auto: opening.Part, path: str | Path, config: Any, dtype: torch.dtype, device: torch.device, parallel: str
) -> Any:
    """What `opening.opened` gives of a model, its layers in parts over the processes and the rest whole in each.

    Every process reads its rows of the files; where transformers names or shapes weights in another way than they do,
    the first one reads all into its host's memory, and hands them on one by one.
    """
    module, info = opening.opened(auto, path, dtype=dtype, device_map="meta")
    over = mesh.over(parallel, device.type).layers
    rows = _of_files(Path(path), module) or _of_first(auto, path, module, dtype, device)
    with init_empty_weights(include_buffers=False):
        computed = dict(opening.built(auto, config).named_buffers())  # that no file has
    kept = module.state_dict()
    parted.laid(module, layers(module), over, rows, device)
    for prefix, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                full = f"{prefix}.{name}" if prefix else name
                value = rows(full, slice(None)).to(buffer.dtype) if full in kept else computed[full]
                part._buffers[name] = value.to(device)
    return module, info


def _of_files(folder: Path, module: nn.Module) -> parted.Rows | None:
    """Rows of weights from safetensors files; None where those have other names or shapes."""
    files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []
    held = {key: file for file in files for key in file.keys()}  # noqa: SIM118  (it is no mapping)
    wanted = module.state_dict(keep_vars=True)
    of = {id(t): name for name, t in wanted.items() if name in held}  # a weight with two names is there once
    if any(id(t) not in of for t in wanted.values()):
        return None
    if any(held[of[id(t)]].get_slice(of[id(t)]).get_shape() != list(t.shape) for t in wanted.values()):
        return None

    def rows(name: str, part: slice) -> Tensor:
        key = of[id(wanted[name])]
        if part.start is not None and part.start >= part.stop:
            return torch.empty(0)
        return held[key].get_slice(key)[part] if wanted[name].dim() else held[key].get_tensor(key)

    return rows


def _of_first(
    auto: opening.Part, path: str | Path, module: nn.Module, dtype: torch.dtype, device: torch.device
) -> parted.Rows:
    """The same from the first process, which reads them all: all ask for the same weights in the same order."""
    wanted = module.state_dict()
    whole = opening.opened(auto, path, dtype=dtype)[0].state_dict() if dist.get_rank() == 0 else {}

    def rows(name: str, part: slice) -> Tensor:
        like = wanted[name]
        value = whole[name].to(device) if whole else torch.empty(like.shape, dtype=like.dtype, device=device)
        dist.broadcast(value, 0)
        return value[part] if value.dim() else value

    return rows


def lies(module: nn.Module) -> bool:
    """Whether any of its weights lies over processes."""
    return shards.spread(module.parameters())


def follows(module: nn.Module) -> bool:
    """Whether it lies over processes of which another one writes."""
    return lies(module) and dist.get_rank() > 0


def agreed(module: nn.Module, found: bool) -> bool:
    """Whether all processes found something, where a model lies over them: those that did not would wait for others."""
    if not lies(module):
        return found
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, found)
    return all(theirs)


def handed(module: nn.Module) -> dict[str, Tensor]:
    """Weights by name, whole in the memory of the first process's host, one gathered after the other: all call.

    Of an adapter without those it was put on.
    """
    state, made = module.state_dict(), dict[str, Tensor]()
    adapter = bool(getattr(module, "peft_config", None))
    for name, weight in state.items():
        if not shards.spread([weight]):
            made[name] = weight
        elif not adapter:
            whole = shards.whole(weight)
            if dist.get_rank() == 0:
                made[name] = whole.cpu()
            del whole
    return made
