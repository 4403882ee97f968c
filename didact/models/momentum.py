"""Momentum attention: every head's output gets, in addition, a decayed sum of the values before its position.

    MoAttn(q_t) = Attn(q_t) + g sum_{i < t} eta^(t - i) v_i,      m_t = eta (m_{t-1} + v_{t-1}), m_1 = 0

before the output projection, as momentum is added to gradient descent. In the paper g is 1 and the model is trained
from scratch with it; initialised at 0, one gate per head, it can be inserted into a trained model (our variant).

Source: Dai et al. 2023, arXiv:2212.10559, section 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from didact.models import insert, projections
from didact.models.insert import Place, Reading
from didact.models.model import Model
from didact.types import UserError


class Momentum(nn.Module):
    """A mixer for `models.insert`, at the attention of a block.

    Args:
        heads: number of query heads.
        eta: the decay, fixed; one number, or one per head.
        gated: g is one trained weight per head, initially 0; else every g is 1.
    """

    gate: Tensor

    def __init__(self, heads: int, eta: float | list[float] = 0.5, gated: bool = True) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {"heads": heads, "eta": eta, "gated": gated}
        etas = [eta] * heads if isinstance(eta, int | float) else list(eta)
        if len(etas) != heads or not all(0 <= e <= 1 for e in etas):
            raise UserError(f"eta = {eta}: must be in [0, 1], one for all or one for each of {heads} heads")
        self.eta = tuple(etas)
        if gated:
            self.gate = nn.Parameter(torch.zeros(heads))
        else:
            self.register_buffer("gate", torch.ones(heads))

    def forward(self, states: Tensor, reading: Reading, layer: nn.Module) -> Tensor:
        """Return what is added to the attention's output, `(B, T, D)`."""
        width = states.shape[1]
        values = reading.remember(projections.values(layer, states))
        assert reading.documents is not None
        size = int(getattr(layer, "head_dim", 0) or values.shape[-1] // len(self.gate))
        by_head = values.view(*values.shape[:2], -1, size)
        full = by_head.repeat_interleave(len(self.gate) // by_head.shape[2], 2)  # heads that share values
        gates = self.gate.to(full)
        summed = torch.cat(
            [decayed(full[:, :, h], self.eta[h], reading.documents, width)[:, :, None] for h in range(len(gates))]
            if len(set(self.eta)) > 1
            else [decayed(full.flatten(2), self.eta[0], reading.documents, width).view(len(full), width, -1, size)],
            dim=2,
        )
        return projections.output(layer, (summed * gates[:, None]).flatten(2))


def decayed(values: Tensor, eta: float, documents: Tensor, queries: int | None = None) -> Tensor:
    """`sum_{i < t} eta^(t - i) v_i`, `(B, Q, D)`, over the positions before t in its document, for the last Q.

    Args:
        values: `(B, T, D)`.
        eta: the decay; 1 adds the running sum, 0 nothing.
        documents: the number of each position's document, `(B, T)`; -1 is padding.
        queries: Q; all by default.
    """
    width = values.shape[1]
    count = width if queries is None else queries
    position = torch.arange(width, device=values.device)
    distance = position[width - count :, None] - position
    before = distance > 0
    weight = torch.where(before, torch.tensor(eta, dtype=torch.float64).to(values) ** distance.clamp(min=0), 0.0)
    same_document = documents[:, width - count :, None] == documents[:, None]
    return (weight * (same_document & (documents[:, None] >= 0))).to(values) @ values


def insert_momentum(model: Model, eta: float = 0.5, gated: bool = True) -> Model:
    """Return a copy of a causal model with momentum in every layer: `gated` for a trained one, not for the paper's."""
    layers = insert.attentions(model.module)
    heads = int(model.text_config.num_attention_heads)
    for layer in layers:  # fail here, not in the first pass
        projections.parts(model, "v")
        projections.output(layer, torch.zeros(1, 1, _width(layer, heads)).to(next(layer.parameters())))
    return insert.insert(model, [(Place(i, "attention"), Momentum(heads, eta, gated)) for i in range(len(layers))])


def _width(layer: Any, heads: int) -> int:
    size = getattr(layer, "head_dim", None) or layer.config.hidden_size // heads
    return int(size) * heads
