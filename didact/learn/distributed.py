"""Communication between the processes that train one model: ranks, gathered values, lost peers."""

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
    """Whether all of a module's weights are on the CPU: then the processes communicate there too."""
    return all(p.device.type == "cpu" for p in module.parameters())


def rank(module: nn.Module) -> tuple[int, int]:
    """Rank of this process and number of processes, (0, 1) without a launcher; starts communication if need be."""
    if launch.world() == 1:
        return 0, 1
    state = PartialState(cpu=on_cpu(module))
    return state.process_index, state.num_processes


def group_rank() -> tuple[int, int]:
    """Rank and world size of the process group, (0, 1) while none is initialised."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_first(values: list[Any]) -> list[Any]:
    """Return the first process's values in every process."""
    shared = [values]
    if dist.is_initialized():
        dist.broadcast_object_list(shared)
    return shared[0]


def joined(values: list[Any]) -> list[Any]:
    """Return all processes' values in every process, in the order of the ranks."""
    if not dist.is_initialized():
        return values
    gathered: list[list[Any]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Replace the errors that torch raises inside when another process ended by one line that points to that process.

    Raises:
        UserError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if launch.world() > 1 and LOST.search(str(error)):
            raise UserError(
                "another process of this training ended, so this one stops: see the error of that process"
            ) from None
        raise


def wait() -> None:
    """Wait until all processes have come this far."""
    if dist.is_initialized():
        dist.barrier()
