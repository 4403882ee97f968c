"""Attention masks for rows laid out in trees: additive, four-dimensional, built on the device.

Float, 0 where a token is visible and the least finite number where not: eager attention silently adds booleans to the
scores as 0 and 1. `models.forward` lists the model types that take them, and which tests prove it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from didact.data.streams import Tokens


def forgetful(batch: Tokens, ratio: tuple[float, float]) -> Tensor:
    """Visible positions `(B, T, T)`, bool, under forgetful causal masking (Liu et al., 2022, 2210.13432).

    A row draws its share of hidden positions from U(*ratio); each position is then hidden from every position with that
    probability, from itself too, but never the row's first.
    """
    rows, width = batch.input_ids.shape
    device = batch.input_ids.device
    share = ratio[0] + (ratio[1] - ratio[0]) * torch.rand(rows, 1, 1, device=device)
    visible = torch.rand(rows, width, width, device=device) >= share
    visible[:, :, 0] = True
    return visible


def tree(
    batch: Tokens, config: Any, dtype: torch.dtype, past: Tensor | None = None, visible: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """The `attention_mask` of a transformers model for trees: `(B, 1, T, W + T)`, or one per layer type.

    Args:
        batch: tokens with `position_ids` and `reach`.
        config: the model's configuration: whether all layers, some or none have a sliding window.
        dtype: of the attention scores; under autocast that is autocast's.
        past: positions of the W columns in the cache, `(B or 1, W)`, negative where a row does not see them.
        visible: `(B, T, T)` bool, False for positions that are hidden in addition (`forgetful`).
    """
    assert batch.reach is not None and batch.position_ids is not None
    rows, width = batch.input_ids.shape
    j = torch.arange(width, device=batch.input_ids.device)
    # Position i sees the token at j if j <= i < reach[j].
    mask = (j <= j[:, None]) & (j[:, None] < batch.reach[:, None, :])
    if visible is not None:
        mask = mask & visible
    past_positions = batch.position_ids[:, :0] if past is None else past.expand(rows, -1)
    mask = torch.cat([(past_positions >= 0)[:, None].expand(-1, width, -1), mask], 2)
    types = getattr(config, "layer_types", None) or []
    window: Any = getattr(config, "sliding_window", None)
    if "sliding_attention" not in types and not (window and config.model_type == "mistral"):
        return _additive(mask, dtype)
    # Positions, not indices: other branches may be between a branch and its prompt. Padding still sees itself.
    position = batch.position_ids
    in_window = position[:, :, None] - torch.cat([past_positions, position], 1)[:, None, :] < window
    window_mask = _additive(mask & in_window, dtype)
    if "sliding_attention" not in types:
        return window_mask
    return {"full_attention": _additive(mask, dtype), "sliding_attention": window_mask}


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)
