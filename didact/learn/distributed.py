"""Several processes that train one model (`accelerate launch`): what each of them makes, all of them have."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from didact.parallel import launch


def on_cpu(module: nn.Module) -> bool:
    """Whether all of a module's weights lie on the CPU: then the processes talk there too."""
    return all(p.device.type == "cpu" for p in module.parameters())


def rank(module: nn.Module) -> tuple[int, int]:
    """This process's number and how many there are; 0 of 1 without a launcher."""
    if launch.world() == 1:
        return 0, 1
    state = PartialState(cpu=on_cpu(module))
    return state.process_index, state.num_processes


def from_first(values: list[Any]) -> list[Any]:
    """The first process's values."""
    held = [values]
    broadcast_object_list(held)
    return held[0]


def joined(values: list[Any]) -> list[Any]:
    """All processes' values, in the order of the processes."""
    made: list[Any] = gather_object(values)
    return made


def wait() -> None:
    """Until all are here."""
    PartialState().wait_for_everyone()
