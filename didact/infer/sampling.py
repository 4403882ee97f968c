"""From logits to tokens: greedy, temperature, top-k and top-p, with an independent random stream for each row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from didact.objectives import tokens as token_functions


def uniforms(seed: int, row: int, draw: int, n: int) -> list[float]:
    """The first `n` uniform numbers in [0, 1) of this row and draw, independent of other rows, batch and length."""
    values: list[float] = np.random.default_rng([seed, row, draw]).random(n).tolist()
    return values


def probabilities(logits: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """The sampling distribution `(B, V)`: `softmax(logits / temperature)`, cut to the likeliest tokens, renormalised.

    Args:
        logits: `(B, V)`; minus infinity forbids a token.
        temperature: positive.
        top_p: keep the fewest likeliest tokens whose probabilities sum to at least this; 1 keeps all.
        top_k: keep this many likeliest tokens before applying `top_p`; 0 keeps all.
    """
    scaled = token_functions.wide(logits) if temperature == 1 else token_functions.wide(logits) / temperature
    if 0 < top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k, -1).values[:, -1:], -torch.inf)
    p = scaled.softmax(-1)
    if top_p < 1:
        ranked, order = torch.sort(p, dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        ranked = ranked.masked_fill(before >= max(top_p, 1e-9), 0)  # the likeliest token always stays
        p = torch.zeros_like(p).scatter_(-1, order, ranked)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by inverting the distribution function: `(B, V)` probabilities, `(B,)` uniforms -> `(B,)`."""
    total = p.double().cumsum(-1)
    at = torch.searchsorted(total, (uniform.to(total) * total[:, -1])[:, None], right=True)[:, 0]
    return at.clamp(max=p.shape[-1] - 1)
