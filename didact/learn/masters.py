"""Float32 copies of narrower weights, for the optimizer to step on.

A small step is less than half the distance between two bfloat16 numbers and would be rounded away, step after step. So
the steps add up in float32, and the module's weights are that sum, rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from didact.parallel import shards

SLOT = "|master"  # suffix of their names in a checkpoint


class Masters:
    """The tensors that the optimizer updates, by name: weights of 32 bits or more, float32 copies of the others."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named = named
        self.all = {n: p if p.dtype.itemsize >= 4 else p.detach().float().requires_grad_() for n, p in named.items()}
        self.copies = [(n, self.all[n], p) for n, p in named.items() if self.all[n] is not p]

    def of(self, weight: Tensor) -> Tensor:
        """Return the tensor that the optimizer updates for a weight."""
        return next((copy for _, copy, p in self.copies if p is weight), weight)

    def groups(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return parameter groups with the copies in place of their weights."""
        tensors = {p: self.all[n] for n, p in self.named.items()}
        return [{**group, "params": [tensors.get(p, p) for p in group["params"]]} for group in groups]

    def take_gradients(self) -> None:
        """Move the weights' gradients to the copies."""
        for _, copy, p in self.copies:
            copy.grad = None if p.grad is None else p.grad.float()
            p.grad = None

    @torch.no_grad()
    def give(self) -> None:
        """Set the weights to the copies, rounded."""
        for _, copy, p in self.copies:
            p.copy_(copy)

    def tensors(self) -> dict[str, Tensor]:
        """The copies as a checkpoint keeps them, beside the optimizer's own tensors."""
        return {n + SLOT: copy.detach().clone() for n, copy, _ in self.copies}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Restore copies that round to the weights, set the others to the weights; return the remaining tensors."""
        for n, copy, p in self.copies:
            saved = tensors.get(n + SLOT)
            matches = saved is not None and bool(shards.whole((saved.to(p.dtype) == p).all()))
            copy.copy_(saved if matches and saved is not None else p)
        return {k: v for k, v in tensors.items() if not k.endswith(SLOT)}
