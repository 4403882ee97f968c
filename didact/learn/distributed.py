"""Several processes that train one model: what each of them makes, all of them have."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from didact.parallel import launch
from didact.types import UserError

LOST = re.compile(
    "by peer|Broken pipe|NCCL|gloo|Connection (reset|refused|closed)|TCPStore|Timed out waiting", re.IGNORECASE
)


def on_cpu(module: nn.Module) -> bool:
    """Whether all of a module's weights lie on the CPU: then the processes talk there too."""
    return all(p.device.type == "cpu" for p in module.parameters())


def rank(module: nn.Module) -> tuple[int, int]:
    """This process's number and how many there are; 0 of 1 without a launcher."""
    if launch.world() == 1:
        return 0, 1
    state = PartialState(cpu=on_cpu(module))
    return state.process_index, state.num_processes


def here() -> tuple[int, int]:
    """The same of the processes that have found each other."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_first(values: list[Any]) -> list[Any]:
    """The first process's values."""
    held = [values]
    if dist.is_initialized():
        dist.broadcast_object_list(held)
    return held[0]


def joined(values: list[Any]) -> list[Any]:
    """All processes' values, in the order of the processes."""
    if not dist.is_initialized():
        return values
    made: list[list[Any]] = [[]] * dist.get_world_size()
    dist.all_gather_object(made, values)
    return [value for theirs in made for value in theirs]


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """What torch raises inside because another process ended is one line, which leaves the word to that process.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if launch.world() > 1 and LOST.search(str(error)):
            raise UserError(
                "another process of this training ended, and this one with it: its own line says why"
            ) from None
        raise


def wait() -> None:
    """Until all are here."""
    if dist.is_initialized():
        dist.barrier()
