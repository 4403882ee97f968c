"""Text embeddings: the mean of a model's last hidden states over the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from didact.data import encode, retrieval
from didact.data.streams import by_length
from didact.infer import encoders, functions
from didact.models import load, prefix
from didact.models.model import Model
from didact.types import LM, UserError


@torch.no_grad()
def embed(model: Model, texts: Sequence[str], batch_tokens: int = 8192) -> Tensor:
    """Return one vector per text, `(texts, d)` in float32 on the CPU; a seq2seq model's are of its encoder's states.

    Texts are truncated on the right to the context; a text without tokens counts as one padding token.
    """
    if not texts:
        return torch.empty(0, 0)
    ids = [encode.prompt_ids(model.tokenizer, t, model.kind)[: model.context] or [model.pad] for t in texts]
    module: Any = prefix.inner_of(model)
    encoder = module.get_encoder() if model.kind == "seq2seq" else module.base_model
    training, vectors = model.module.training, [torch.empty(0)] * len(texts)
    model.module.eval()
    try:
        for group in by_length([len(r) for r in ids], batch_tokens):
            width = max(len(ids[i]) for i in group)
            rows = torch.tensor([ids[i] + [model.pad] * (width - len(ids[i])) for i in group], device=model.device)
            mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in group], device=model.device)
            options = {} if model.kind == "seq2seq" else {"use_cache": False}
            states = encoder(input_ids=rows, attention_mask=mask, **options).last_hidden_state.float()
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for i, vector in zip(group, mean.cpu(), strict=True):
                vectors[i] = vector
    finally:
        model.module.train(training)
    return torch.stack(vectors)


def embedder(name: str, model: Model | LM, texts: Sequence[str] = ()) -> retrieval.Embedder:
    """Return an embedding function by name: `model` takes the mean hidden states of `model`, `tfidf` is fitted to
    `texts`, a folder holds an encoder (`encoders`) or a language model whose mean hidden states are taken; else
    `module:function`.

    Raises:
        UserError: there is no such function, or `model` is on a server.
    """
    if name == "tfidf":
        return retrieval.TfIdf(texts)
    if name != "model" and not Path(name).is_dir():
        return functions.import_function(name, "embedder")
    if name != "model" and encoders.is_encoder(name):
        encoder = encoders.open_encoder(name)
        return lambda batch: encoder(batch).numpy()
    local = getattr(model, "model", model) if name == "model" else load.load(name)
    if not isinstance(local, Model):
        raise UserError("a server does not show its hidden states: name an embedding function, as module:function")
    return lambda batch: embed(local, batch).numpy()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity `(n,)` of the rows of `(n, d)` and `(n, d)`; 0 where a row is zero."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)
