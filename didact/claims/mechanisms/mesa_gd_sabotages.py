"""What mesa-gd's claim must notice: signs, labels and step sizes that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.evaluate import learners
from didact.learn import episodes


def flipped(module: nn.Module) -> learners.Learner:
    """the readout forgets its minus once the module is trained."""
    return lambda x, y, query: -module(x, y, query)


def shuffled(sampler: episodes.Sampler, seed: int, rows: int) -> Callable[[int], Tensors]:
    """contexts are trained on whose labels belong to other rows."""

    def batch_at(step: int) -> Tensors:
        batch = sampler((seed, step), rows)
        order = torch.rand(batch["y"].shape[:2], generator=torch.Generator().manual_seed(step)).argsort(1)
        return Tensors({**batch.tensors, "y": batch["y"].take_along_dim(order[..., None], 1)})

    return batch_at


def wrong_slot(query: Tensor, start: Tensor) -> Tensor:
    """the query token, itself a key and value, brings a label of its own making."""
    return torch.ones_like(query @ start.T)


def eta_over_rows(rows: int, dim: int, variance: float, fourth: float) -> float:
    """eta taken for eta/N, and divided once more."""
    return variance / (fourth + (rows + dim - 2) * variance**2)
