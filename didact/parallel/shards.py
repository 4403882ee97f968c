"""Tensors sharded over processes (DTensors), and their checkpoint files (torch.distributed.checkpoint).

Such a file describes each whole tensor, so that any number of processes, also one alone, read the same bits from it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

FOLDER = "shards"  # of a checkpoint
# It warns that a weight split over two axes is gathered in two steps.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def spread(tensors: Iterable[Tensor]) -> bool:
    """Whether any tensor is sharded over processes."""
    return any(isinstance(t, DTensor) for t in tensors)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor in every process: all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, other: Tensor | None) -> Tensor:
    """Return `value` on the device of `other`, and sharded like it if both have the same shape."""
    if other is None or isinstance(value, DTensor):
        return value
    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value.to(other.device)
    buffer = torch.empty_like(other, dtype=value.dtype, requires_grad=False)
    place(buffer, value)
    return buffer


@torch.no_grad()
def place(part: Tensor, value: Tensor) -> None:
    """Copy this process's part of the whole tensor `value` into `part`."""
    if not isinstance(part, DTensor):
        part.copy_(value)
        return
    shape, offset = compute_local_shape_and_global_offset(part.shape, part.device_mesh, part.placements)
    region = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
    part.to_local().copy_(value[region])


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into `folder`, each process its part: all processes must call it."""
    with _quiet():
        state_dict_saver.save({k: t.detach() for k, t in tensors.items()}, storage_writer=FileSystemWriter(folder))


def read(folder: Path, over: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors from `folder`, `name` or `name|...` sharded like `over[name]`. All processes must call it.

    Tensors that belong to no weight in `over` are skipped, unless it is empty.
    """
    metadata: Mapping[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
    weights = {key: over.get(key.split("|")[0]) for key in metadata}
    tensors = {
        key: _empty_tensor(metadata[key].size, metadata[key].properties.dtype, weight)
        for key, weight in weights.items()
        if weight is not None or not over
    }
    with _quiet():
        state_dict_loader.load(tensors, storage_reader=FileSystemReader(folder))
    return tensors


def _empty_tensor(size: Any, dtype: torch.dtype, weight: Tensor | None) -> Tensor:
    if weight is not None and weight.shape == size:
        return torch.empty_like(weight, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings about a missing process group, and about its own use of typed storage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
