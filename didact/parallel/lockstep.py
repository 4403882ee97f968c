"""Recovery of a pass through sharded layers after one process ran out of memory, in step with the others.

Processes with a sharded model issue the same collectives in the same order, whatever they compute. One that ran out of
memory in the middle repeats the pass with less: the collectives that it had issued already it runs with itself alone,
until it reaches the point where the others wait for it. No process must end and no group be rebuilt; the results of
such a pass are invalid, and all processes discard them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")  # namespaces of torch's operations


def issued() -> dict[str, int]:
    """Return the number of collectives that this process has issued, by group."""
    groups = dist.distributed_c10d._world.pg_map
    return {g.group_name: sum(b._get_sequence_number_for_group() for b in _backends(g)) for g in groups}


@contextlib.contextmanager
def behind(root: Any, since: Mapping[str, int]) -> Iterator[None]:
    """Repeat a failed pass inside, skipping the collectives that were issued since `issued()` returned `since`.

    Args:
        root: of the module's FSDP states.
        since: result of `issued()` when the pass began.
    """
    root.reset_iter_state()
    skipping = _SkippingMode({name: count - since.get(name, 0) for name, count in issued().items()})
    try:
        with skipping:
            yield
    finally:
        skipping.release()


class _SkippingMode(TorchDispatchMode):
    """Runs the next `remaining` collectives of each group with this process alone."""

    def __init__(self, remaining: dict[str, int]) -> None:
        super().__init__()
        self.remaining = remaining
        self.groups: dict[str, Any] = {group.group_name: group for group in dist.distributed_c10d._world.pg_map}
        self.alone: dict[str, dist.ProcessGroup] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, a collective to be skipped in the group of this process alone."""
        if DTensor in types:  # decomposed into operations that come here
            return NotImplemented
        if func.namespace in COLLECTIVES:
            args = tuple(map(self._replaced, args))
        return func(*args, **(kwargs or {}))

    def _replaced(self, value: Any) -> Any:
        boxed = isinstance(value, torch.ScriptObject) and str(value._type()).endswith("c10d.ProcessGroup")
        name = dist.ProcessGroup.unbox(value).group_name if boxed else value
        if not isinstance(name, str) or self.remaining.get(name, 0) <= 0:
            return value
        self.remaining[name] -= 1
        if name not in self.alone:
            self.alone[name] = _solo_group(self.groups[name])
        return self.alone[name].boxed() if boxed else self.alone[name].group_name

    def release(self) -> None:
        """Unregister the single-process groups."""
        for group in self.alone.values():
            c10d._unregister_process_group(group.group_name)


def _solo_group(group: Any) -> Any:
    """Build a fake group of the same size whose collectives do not communicate."""
    solo: Any = dist.ProcessGroup(c10d.HashStore(), group.rank(), group.size())
    backend = c10d.FakeProcessGroup._create_internal(group.rank(), group.size())
    for device in group._device_types:
        solo._register_backend(device, dist.ProcessGroup.BackendType.CUSTOM, backend)
    solo._set_group_name(f"{group.group_name} alone")
    c10d._register_process_group(solo.group_name, solo)
    return solo


def _backends(group: Any) -> set[Any]:
    return {group._get_backend(device) for device in group._device_types}
