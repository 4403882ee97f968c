"""The syntactic probe as a module: a projection of hidden states, and the tree heights and labels read off it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Subspace(nn.Module):
    """The probe: `P (d, rank)`, `C (rank, labels)`, `U (rank, leaf labels)`, all initialised uniformly in +-0.05."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, rank: int, labels: int, leaf_labels: int) -> None:
        super().__init__()
        self.spec = {"width": width, "rank": rank, "labels": labels, "leaf_labels": leaf_labels}
        self.p, self.c, self.u = (
            nn.Parameter(torch.empty(shape).uniform_(-0.05, 0.05))
            for shape in ((width, rank), (rank, labels), (rank, leaf_labels))
        )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def units(self, vectors: Tensor) -> None:
        """Standardise inputs by the mean of these vectors `(n, d)` and one root mean square over all their entries."""
        self.mean.copy_(vectors.mean(0))
        self.scale.copy_((vectors - self.mean).square().mean().sqrt().clamp_min(1e-6))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From `(B, n, d)`: heights `(B, n - 1)`, logits of labels `(B, n - 1, C)` and of leaf labels `(B, n, U)`."""
        z = ((states - self.mean) / self.scale) @ self.p
        diff = z[:, 1:] - z[:, :-1]
        return diff.square().sum(-1), diff @ self.c, z @ self.u
