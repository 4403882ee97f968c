"""Tokens added to a model's vocabulary."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from didact.models.model import Model, copy_of


def with_tokens(model: Model, tokens: Sequence[str], noise: float = 0.01, seed: int = 0) -> Model:
    """Return a copy of a model with these control tokens, each one id, added; decoded text leaves them out.

    A new token's embedding (and its row of an untied head) is the mean of the old ones + noise N(0, 1). A token that
    is already in the vocabulary keeps its embedding.
    """
    extended = copy_of(model)
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    old_count = len(tokenizer)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    module: Any = extended.module
    rows = module.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # a padded embedding may have free rows
        module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(t.weight): t.weight for t in (module.get_input_embeddings(), module.get_output_embeddings()) if t}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in tables.values():
            drawn = torch.randn(len(tokenizer) - old_count, weight.shape[1], generator=generator).to(weight)
            weight[old_count : len(tokenizer)] = weight[:old_count].mean(0) + noise * drawn
    return dataclasses.replace(extended, processor=tokenizer)  # fits the tokenizer to the new embeddings


def ids(model: Model, tokens: Sequence[str]) -> list[int]:
    """Return the ids of tokens that are each one id."""
    tokenizer: Any = model.tokenizer
    return [int(tokenizer.convert_tokens_to_ids(t)) for t in tokens]
