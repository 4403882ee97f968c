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

SLOT = "|master"  # what their names end with in a checkpoint


class Masters:
    """What the optimizer steps on, by name: weights of 32 bits and more themselves, float32 copies of the others."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named = named
        self.all = {n: p if p.dtype.itemsize >= 4 else p.detach().float().requires_grad_() for n, p in named.items()}
        self.copies = [(n, self.all[n], p) for n, p in named.items() if self.all[n] is not p]

    def of(self, weight: Tensor) -> Tensor:
        """What the optimizer steps on for a weight."""
        return next((copy for _, copy, p in self.copies if p is weight), weight)

    def groups(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups with the copies in place of what they stand for."""
        of = {p: self.all[n] for n, p in self.named.items()}
        return [{**group, "params": [of.get(p, p) for p in group["params"]]} for group in groups]

    def take_gradients(self) -> None:
        """The weights' gradients become the copies'."""
        for _, copy, p in self.copies:
            copy.grad = None if p.grad is None else p.grad.float()
            p.grad = None

    @torch.no_grad()
    def give(self) -> None:
        """The weights become the copies, rounded."""
        for _, copy, p in self.copies:
            p.copy_(copy)

    def tensors(self) -> dict[str, Tensor]:
        """The copies as a checkpoint keeps them, beside the optimizer's own tensors."""
        return {n + SLOT: copy.detach().clone() for n, copy, _ in self.copies}

    @torch.no_grad()
    def restore(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take back the copies whose rounding the weights are; the others begin at the weights. Gives what is left."""
        for n, copy, p in self.copies:
            was = kept.get(n + SLOT)
            same = was is not None and bool(shards.whole((was.to(p.dtype) == p).all()))
            copy.copy_(was if same and was is not None else p)
        return {k: v for k, v in kept.items() if not k.endswith(SLOT)}
