"""A model as it was before it learnt anything: what a probe finds there, it found by itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from didact.models import prefix
from didact.models.model import Model


def untrained(model: Model, seed: int = 0, keep_embeddings: bool = False) -> Model:
    """The same architecture with fresh weights; where embeddings are kept, with all that stands outside its blocks."""
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
        inside = tuple(f"{name}." for name, part in fresh.named_modules() if isinstance(part, nn.ModuleList))
        kept = {n: p for n, p in inner.state_dict().items() if not n.startswith(inside)}
        fresh.load_state_dict(kept, strict=False)
    return Model(fresh.to(model.device, next(inner.parameters()).dtype).eval(), model.processor, model.kind)
