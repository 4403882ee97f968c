"""Sabotages that mesa-gd's claim must detect: wrong signs, labels and step sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.evaluate import learners
from didact.learn import episodes


def flipped(module: nn.Module) -> learners.Learner:
    """Flip the sign of the readout of a trained module."""
    return lambda x, y, query: -module(x, y, query)


def shuffled(sampler: episodes.Sampler, seed: int, rows: int) -> Callable[[int], Tensors]:
    """Train on contexts whose labels are shuffled between rows."""

    def batch_at(step: int) -> Tensors:
        batch = sampler((seed, step), rows)
        order = torch.rand(batch["y"].shape[:2], generator=torch.Generator().manual_seed(step)).argsort(1)
        return Tensors({**batch.tensors, "y": batch["y"].take_along_dim(order[..., None], 1)})

    return batch_at


def wrong_slot(query: Tensor, start: Tensor) -> Tensor:
    """Let the query token, also a key and value, have a label of 1."""
    return torch.ones_like(query @ start.T)


def eta_over_rows(rows: int, dim: int, variance: float, fourth: float) -> float:
    """Divide eta by N once too often."""
    return variance / (fourth + (rows + dim - 2) * variance**2)
