"""Tensors that lie over processes (DTensors), and their files: torch.distributed.checkpoint's, for any number of them.

A file of shards says what each tensor is as a whole, so that other numbers of processes, and one alone, read the
same bits from it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor, distribute_tensor

FOLDER = "shards"  # of a checkpoint


def spread(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of them lies over processes."""
    return any(isinstance(t, DTensor) for t in tensors.values())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process: all of them call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, other: Tensor | None) -> Tensor:
    """`value` on the device of `other`, and over the processes as that is, where both have one shape."""
    if other is None or isinstance(value, DTensor):
        return value
    at = value.to(other.device)
    if isinstance(other, DTensor) and value.shape == other.shape:
        return distribute_tensor(at, other.device_mesh, other.placements, src_data_rank=None)
    return at


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's part of them into `folder`: all processes call."""
    with _quiet():
        state_dict_saver.save({k: t.detach() for k, t in tensors.items()}, storage_writer=FileSystemWriter(folder))


def read(folder: Path, over: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands in `folder`; a tensor `name` or `name|...` lies over processes as `over[name]` does. All call."""
    kept: Mapping[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
    room = {key: _room(told.size, told.properties.dtype, over.get(key.split("|")[0])) for key, told in kept.items()}
    with _quiet():
        state_dict_loader.load(room, storage_reader=FileSystemReader(folder))
    return room


def _room(size: Any, dtype: torch.dtype, other: Tensor | None) -> Tensor:
    if other is not None and other.shape == size:
        return torch.empty_like(other, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks: that one process is no group, and on its own use of typed storage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
