"""A value head beside a causal model's own: `V = -sigmoid(v . h)` in (-1, 0), v initially zero, without a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from didact.models import forward, prefix
from didact.models.model import Model, copy_of
from didact.types import UserError


def attached(model: Model) -> Model:
    """Return a copy with a value head, trained with the other weights; initially every value is -1/2.

    Raises:
        UserError: this model type's hidden states cannot be read separately from its head.
    """
    kind = getattr(model.config, "model_type", None)
    if kind not in forward.LINEAR_HEAD | forward.CAPPED_HEAD:
        raise UserError(f"a value head reads the hidden states before the head: not supported for {kind}")
    copied = copy_of(model)
    module: Any = prefix.inner_of(copied)
    head = module.get_output_embeddings()
    module.value_head = nn.Linear(head.in_features, 1, bias=False).to(head.weight)
    nn.init.zeros_(module.value_head.weight)
    return copied


def of_states(model: Model, states: Tensor) -> Tensor:
    """Return values `(N,)` for the result of `forward.label_states`, `(N, d)`; their gradient reaches the body."""
    return -torch.sigmoid(prefix.inner_of(model).value_head(states)[:, 0])


def remove(model: Model) -> None:
    """Remove the value head."""
    del prefix.inner_of(model).value_head
