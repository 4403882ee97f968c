"""Attention masks for rows laid out in trees: additive, four-dimensional, made on the device.

Float, 0 where a token is seen and the least finite number where not: booleans are added to the scores by eager
attention, silently, as 0 and 1. Which types take them, by which test, is said in `models.forward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from didact.data.streams import Tokens


def forgetful(batch: Tokens, ratio: tuple[float, float]) -> Tensor:
    """Which positions may be seen at all, `(B, T, T)` bool: forgetful causal masking (Liu et al., 2022, 2210.13432).

    A row draws its share of hidden positions from U(*ratio); every position then loses each with that probability,
    itself too, but never the row's first.
    """
    rows, width = batch.input_ids.shape
    device = batch.input_ids.device
    share = ratio[0] + (ratio[1] - ratio[0]) * torch.rand(rows, 1, 1, device=device)
    kept = torch.rand(rows, width, width, device=device) >= share
    kept[:, :, 0] = True
    return kept


def tree(
    batch: Tokens, config: Any, dtype: torch.dtype, past: Tensor | None = None, kept: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """What a transformers model takes as `attention_mask` for trees: `(B, 1, T, W + T)`, or one a layer type.

    Args:
        batch: tokens with `position_ids` and `reach`.
        config: the model's configuration: says whether all layers, some or none see only a window.
        dtype: of the attention scores; under autocast that is autocast's.
        past: positions of the W columns in the cache, `(B or 1, W)`, negative where a row does not see them.
        kept: `(B, T, T)` bool, which of them may be seen at all.
    """
    assert batch.reach is not None and batch.position_ids is not None
    rows, width = batch.input_ids.shape
    j = torch.arange(width, device=batch.input_ids.device)
    # From i the token at j is seen where j <= i < reach[j].
    seen = (j <= j[:, None]) & (j[:, None] < batch.reach[:, None, :])
    if kept is not None:
        seen = seen & kept
    before = batch.position_ids[:, :0] if past is None else past.expand(rows, -1)
    seen = torch.cat([(before >= 0)[:, None].expand(-1, width, -1), seen], 2)
    types = getattr(config, "layer_types", None) or []
    window: Any = getattr(config, "sliding_window", None)
    if "sliding_attention" not in types and not (window and config.model_type == "mistral"):
        return _additive(seen, dtype)
    # Positions, not indices: between a branch and its prompt other branches may lie. Padding still sees itself.
    position = batch.position_ids
    near = position[:, :, None] - torch.cat([before, position], 1)[:, None, :] < window
    near_mask = _additive(seen & near, dtype)
    if "sliding_attention" not in types:
        return near_mask
    return {"full_attention": _additive(seen, dtype), "sliding_attention": near_mask}


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)
