"""Tensors that lie over processes (DTensors), and their files: torch.distributed.checkpoint's, for any number of them.

A file of shards says what each tensor is as a whole, so that other numbers of processes, and one alone, read the
same bits from it.
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
# It remarks that a weight split twice is gathered twice.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def spread(tensors: Iterable[Tensor]) -> bool:
    """Whether any of them lies over processes."""
    return any(isinstance(t, DTensor) for t in tensors)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process: all of them call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """What of a tensor this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, other: Tensor | None) -> Tensor:
    """`value` on the device of `other`, and over the processes as that is, where both have one shape."""
    if other is None or isinstance(value, DTensor):
        return value
    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value.to(other.device)
    buffer = torch.empty_like(other, dtype=value.dtype, requires_grad=False)
    place(buffer, value)
    return buffer


@torch.no_grad()
def place(part: Tensor, value: Tensor) -> None:
    """Write this process's part of a whole tensor."""
    if not isinstance(part, DTensor):
        part.copy_(value)
        return
    shape, offset = compute_local_shape_and_global_offset(part.shape, part.device_mesh, part.placements)
    region = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
    part.to_local().copy_(value[region])


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's part of them into `folder`: all processes call."""
    with _quiet():
        state_dict_saver.save({k: t.detach() for k, t in tensors.items()}, storage_writer=FileSystemWriter(folder))


def read(folder: Path, over: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands in `folder`; a tensor `name` or `name|...` lies over processes as `over[name]` does. All call.

    What belongs to no weight in `over` is left, unless that is empty.
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
    """Without torch's remarks: that one process is no group, and on its own use of typed storage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
