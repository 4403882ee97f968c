"""A value head beside a causal model's own: `V = -sigmoid(v . h)` in (-1, 0), a linear map at zero without a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from didact.models import forward, prefix
from didact.models.model import Model, copy_of
from didact.types import UserError


def attached(model: Model) -> Model:
    """A copy with the head, which is trained beside the weights; at first every value is -1/2.

    Raises:
        UserError: the hidden states of this type cannot be read apart from its head.
    """
    kind = getattr(model.config, "model_type", None)
    if kind not in forward.LINEAR_HEAD | forward.CAPPED_HEAD:
        raise UserError(f"values are read from the states before the head, which is not known for {kind}")
    copied = copy_of(model)
    module: Any = prefix.inner_of(copied)
    head = module.get_output_embeddings()
    module.value_head = nn.Linear(head.in_features, 1, bias=False).to(head.weight)
    nn.init.zeros_(module.value_head.weight)
    return copied


def of_states(model: Model, states: Tensor) -> Tensor:
    """Values `(N,)` of what `forward.label_states` gave, `(N, d)`; their gradient reaches the body."""
    return -torch.sigmoid(prefix.inner_of(model).value_head(states)[:, 0])


def remove(model: Model) -> None:
    """Take the head off again."""
    del prefix.inner_of(model).value_head
