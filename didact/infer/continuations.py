"""Next-token logits after rows that continue prompts, where every prompt is read once.

A decoder keeps the prompt's keys and values, an encoder-decoder its encoder states and cross-attention; a model whose
cache is not proven exact reads the prompt again with every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from didact.data.encode import TokenizedExample
from didact.data.streams import padded
from didact.models import forward, prefix
from didact.models.model import Model

ENCODER_DECODERS = {"t5"}  # whose decoder is exact from a cache after an encoder pass, proven by the parity test


class Continuations(Protocol):
    """Prompts that were read, each with constant first tokens `bos` of its completion.

    `first (Q, V)` are the logits after them, `bos_nll (Q,)` is their nll.
    """

    first: Tensor
    bos_nll: NDArray[np.float64]

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits `(R, T, V)` after every token of rows that continue the prompts `owners`."""


def read(model: Model, prompts: Sequence[tuple[int, ...]], bos: tuple[int, ...], end: int) -> Continuations:
    """Read prompts.

    Args:
        model: causal or seq2seq.
        prompts: token ids.
        bos: constant first tokens of every completion; none for a decoder-only model.
        end: a token that may follow a row.
    """
    if prefix.shares(model):
        return _Decoder(model, prompts)
    if model.kind == "seq2seq" and prefix.inner_of(model).config.model_type in ENCODER_DECODERS:
        return _EncoderDecoder(model, prompts, bos)
    return _Plain(model, prompts, bos, end)


def padded_prompts(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts padded on the right, and which of it is real: `(Q, T)` twice."""
    mask = padded([[1] * len(p) for p in prompts], 0)
    return padded(prompts, model.pad).to(model.device), mask.to(model.device)


def decoder_start(model: Model, bos: tuple[int, ...], n: int) -> Tensor:
    """What the decoder of an encoder-decoder reads before an answer: `(n, 1 + bos)`."""
    return torch.tensor([(model.pad if model.start is None else model.start, *bos)] * n, device=model.device)


class _Decoder:
    """Prompts of a decoder-only model, as keys and values."""

    def __init__(self, model: Model, prompts: Sequence[tuple[int, ...]]) -> None:
        self.model, self.lengths = model, [len(p) for p in prompts]
        self.store = prefix.Store()
        self.first = prefix.extend(model, self.store, prompts)
        self.bos_nll = np.zeros(len(prompts))

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        ids = padded(rows, self.model.pad).to(self.model.device)
        width = ids.shape[1]
        store = prefix.packed([(self.store, [(q, 0, self.lengths[q]) for q in owners])], width)
        past = torch.tensor([self.lengths[q] for q in owners], device=ids.device)[:, None]
        columns = torch.arange(store.length + width, device=ids.device)
        mask = columns >= store.length - past if int(past.min()) < store.length else None
        # Padding may lie beyond the context; nothing looks at it.
        positions = (past + torch.arange(width, device=ids.device)).clamp(max=self.model.context - 1)
        return prefix.step(self.model, store, ids, positions, mask, keep=width)


class _EncoderDecoder:
    """Prompts of an encoder-decoder, encoded once; their keys and values for the decoder's layers are made once too."""

    def __init__(self, model: Model, prompts: Sequence[tuple[int, ...]], bos: tuple[int, ...]) -> None:
        self.model = model
        ids, self.mask = padded_prompts(model, prompts)
        self.states = prefix.inner_of(model).get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.own, self.cross = prefix.Store(), prefix.Store()
        logits = self._step(self.own, self.cross, self.states, self.mask, decoder_start(model, bos, len(ids)))
        self.first = logits[:, -1]
        logp = logits[:, :-1].double().log_softmax(-1)
        target = torch.tensor([bos] * len(ids), device=ids.device, dtype=torch.long)
        self.bos_nll = -logp.gather(-1, target[..., None]).sum((1, 2)).cpu().numpy()

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        ids = padded(rows, self.model.pad).to(self.model.device)
        index = torch.tensor(owners, device=ids.device)
        own, cross = self.own.select(index, room=ids.shape[1]), self.cross.select(index)
        return self._step(own, cross, self.states[index], self.mask[index], ids)

    def _step(self, own: prefix.Store, cross: prefix.Store, states: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        past: Any = EncoderDecoderCache(own, cross)
        return self.model.module(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=ids, past_key_values=past, use_cache=True
        ).logits


class _Plain:
    """Any other model: the prompt is read with every row, by the scoring forward of `models.forward`."""

    def __init__(self, model: Model, prompts: Sequence[tuple[int, ...]], bos: tuple[int, ...], end: int) -> None:
        self.model, self.prompts, self.bos, self.end = model, prompts, bos, end
        self.bos_nll = np.zeros(len(prompts))
        self.first = self.logits(range(len(prompts)), [()] * len(prompts))[:, -1]

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        bos = self.bos
        scored = [TokenizedExample(self.prompts[q], (*bos, *r, self.end)) for q, r in zip(owners, rows, strict=True)]
        width = max(len(r) for r in rows) or 1
        out: Tensor | None = None
        for group, batch, values in forward.score(self.model, scored, {"logits": lambda logits, target: logits}):
            logits = values["logits"]
            out = logits.new_zeros(len(rows), width, logits.shape[-1]) if out is None else out
            for k, i in enumerate(group):
                own = logits[batch.row == k]  # of bos, row and end
                n = max(1, len(rows[i]))
                out[i, :n] = own[-n:]
                if not rows[i] and bos:
                    logp = own[: len(bos)].double().log_softmax(-1)
                    self.bos_nll[i] = -float(logp[torch.arange(len(bos)), list(bos)].sum())
        assert out is not None
        return out
