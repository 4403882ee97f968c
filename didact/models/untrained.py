"""Untrained copies of a model, the baseline for probes: what a probe finds there was not learnt by the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from didact.models import prefix
from didact.models.model import Model


def untrained(model: Model, seed: int = 0, keep_embeddings: bool = False) -> Model:
    """Return the same architecture with new random weights; `keep_embeddings` keeps all weights outside its blocks."""
    inner: Any = prefix.inner_of(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if hasattr(inner, "spec"):
            fresh: Any = type(inner)(**inner.spec)
        else:
            config = copy.deepcopy(inner.config)
            for name in ("quantization_config", "_pre_quantization_dtype"):
                config.__dict__.pop(name, None)
            fresh = type(inner)(config)
    if keep_embeddings:
        block_names = tuple(f"{name}." for name, part in fresh.named_modules() if isinstance(part, nn.ModuleList))
        outside = {n: p for n, p in inner.state_dict().items() if not n.startswith(block_names)}
        fresh.load_state_dict(outside, strict=False)
    return Model(fresh.to(model.device, next(inner.parameters()).dtype).eval(), model.processor, model.kind)
