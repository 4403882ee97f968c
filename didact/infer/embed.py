"""Texts as vectors: the mean of a model's last hidden states over their tokens."""

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
    """One vector a text, `(texts, d)` in float32 on the CPU; of a seq2seq model the encoder's states are taken.

    Texts are cut on the right to the context; one without tokens is the padding token.
    """
    if not texts:
        return torch.empty(0, 0)
    ids = [encode.prompt_ids(model.tokenizer, t, model.kind)[: model.context] or [model.pad] for t in texts]
    inner: Any = prefix.inner_of(model)
    body = inner.get_encoder() if model.kind == "seq2seq" else inner.base_model
    was, out = model.module.training, [torch.empty(0)] * len(texts)
    model.module.eval()
    try:
        for group in by_length([len(r) for r in ids], batch_tokens):
            width = max(len(ids[i]) for i in group)
            rows = torch.tensor([ids[i] + [model.pad] * (width - len(ids[i])) for i in group], device=model.device)
            there = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in group], device=model.device)
            more = {} if model.kind == "seq2seq" else {"use_cache": False}
            states = body(input_ids=rows, attention_mask=there, **more).last_hidden_state.float()
            mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
            for i, vector in zip(group, mean.cpu(), strict=True):
                out[i] = vector
    finally:
        model.module.train(was)
    return torch.stack(out)


def embedder(name: str, model: Model | LM, texts: Sequence[str] = ()) -> retrieval.Embedder:
    """What turns texts into vectors: `model` is the means of the model's own hidden states, `tfidf` the words of
    `texts`, a folder an encoder's vectors (`encoders`) or the means of a language model's states; else
    `module:function`.

    Raises:
        UserError: there is no such function, or the model is behind a server.
    """
    if name == "tfidf":
        return retrieval.TfIdf(texts)
    if name != "model" and not Path(name).is_dir():
        return functions.imported(name, "embedder")
    if name != "model" and encoders.is_encoder(name):
        encoder = encoders.opened(name)
        return lambda some: encoder(some).numpy()
    local = getattr(model, "model", model) if name == "model" else load.load(name)
    if not isinstance(local, Model):
        raise UserError("a server does not show its hidden states: name what embeds, module:function")
    return lambda some: embed(local, some).numpy()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between rows of `(n, d)` and `(n, d)`, `(n,)`; 0 where one is zero."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)
