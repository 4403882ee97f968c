"""Next-token logits after rows that continue prompts, where every prompt is processed once.

For a decoder the prompts' keys and values are cached, for an encoder-decoder the encoder states and the keys and values
of cross-attention; a model whose cache is not proven exact reads the prompt again with every row.
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

ENCODER_DECODERS = {"t5"}  # model types whose cached decoder is exact, proven by the parity test


class Continuations(Protocol):
    """Processed prompts, each with the constant first tokens `bos` of its completion.

    `first (Q, V)` are the logits after `bos`, `bos_nll (Q,)` is the nll of `bos`.
    """

    first: Tensor
    bos_nll: NDArray[np.float64]

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        """Return logits `(R, T, V)` after every token of rows that continue the prompts `owners`."""


def read(model: Model, prompts: Sequence[tuple[int, ...]], bos: tuple[int, ...], end: int) -> Continuations:
    """Process prompts.

    Args:
        model: causal or seq2seq.
        prompts: token ids.
        bos: constant first tokens of every completion; empty for a decoder-only model.
        end: any token that may follow a row, to score rows by.
    """
    if prefix.shares(model):
        return _Decoder(model, prompts)
    if model.kind == "seq2seq" and prefix.inner_of(model).config.model_type in ENCODER_DECODERS:
        return _EncoderDecoder(model, prompts, bos)
    return _Plain(model, prompts, bos, end)


def padded_prompts(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the prompts, padded on the right, and their attention mask, both `(Q, T)`."""
    mask = padded([[1] * len(p) for p in prompts], 0)
    return padded(prompts, model.pad).to(model.device), mask.to(model.device)


def decoder_start(model: Model, bos: tuple[int, ...], n: int) -> Tensor:
    """Return what an encoder-decoder's decoder reads before an answer, `(n, 1 + bos)`."""
    return torch.tensor([(model.pad if model.start is None else model.start, *bos)] * n, device=model.device)


class _Decoder:
    """Prompts of a decoder-only model, as cached keys and values."""

    def __init__(self, model: Model, prompts: Sequence[tuple[int, ...]]) -> None:
        self.model, self.lengths = model, [len(p) for p in prompts]
        self.store = prefix.Store()
        self.first = prefix.extend(model, self.store, prompts)
        self.bos_nll = np.zeros(len(prompts))

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        ids = padded(rows, self.model.pad).to(self.model.device)
        width = ids.shape[1]
        store = prefix.packed([(self.store, [(q, 0, self.lengths[q]) for q in owners])], width)
        lengths = torch.tensor([self.lengths[q] for q in owners], device=ids.device)[:, None]
        columns = torch.arange(store.length + width, device=ids.device)
        mask = columns >= store.length - lengths if int(lengths.min()) < store.length else None
        # Padding may lie beyond the context; nothing attends to it.
        positions = (lengths + torch.arange(width, device=ids.device)).clamp(max=self.model.context - 1)
        return prefix.step(self.model, store, ids, positions, mask, keep=width)


class _EncoderDecoder:
    """Prompts of an encoder-decoder, encoded once; the decoder's cross-attention keys and values are cached too."""

    def __init__(self, model: Model, prompts: Sequence[tuple[int, ...]], bos: tuple[int, ...]) -> None:
        self.model = model
        ids, self.mask = padded_prompts(model, prompts)
        self.states = prefix.inner_of(model).get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.self_kv, self.cross_kv = prefix.Store(), prefix.Store()
        logits = self._step(self.self_kv, self.cross_kv, self.states, self.mask, decoder_start(model, bos, len(ids)))
        self.first = logits[:, -1]
        logp = logits[:, :-1].double().log_softmax(-1)
        target = torch.tensor([bos] * len(ids), device=ids.device, dtype=torch.long)
        self.bos_nll = -logp.gather(-1, target[..., None]).sum((1, 2)).cpu().numpy()

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        ids = padded(rows, self.model.pad).to(self.model.device)
        index = torch.tensor(owners, device=ids.device)
        self_kv, cross_kv = self.self_kv.select(index, room=ids.shape[1]), self.cross_kv.select(index)
        return self._step(self_kv, cross_kv, self.states[index], self.mask[index], ids)

    def _step(self, self_kv: prefix.Store, cross_kv: prefix.Store, states: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        past: Any = EncoderDecoderCache(self_kv, cross_kv)
        return self.model.module(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=ids, past_key_values=past, use_cache=True
        ).logits


class _Plain:
    """Any other model: the prompt is read again with every row, by `models.forward.score`."""

    def __init__(self, model: Model, prompts: Sequence[tuple[int, ...]], bos: tuple[int, ...], end: int) -> None:
        self.model, self.prompts, self.bos, self.end = model, prompts, bos, end
        self.bos_nll = np.zeros(len(prompts))
        self.first = self.logits(range(len(prompts)), [()] * len(prompts))[:, -1]

    def logits(self, owners: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        bos = self.bos
        examples = [TokenizedExample(self.prompts[q], (*bos, *r, self.end)) for q, r in zip(owners, rows, strict=True)]
        width = max(len(r) for r in rows) or 1
        out: Tensor | None = None
        for group, batch, values in forward.score(self.model, examples, {"logits": lambda logits, target: logits}):
            logits = values["logits"]
            out = logits.new_zeros(len(rows), width, logits.shape[-1]) if out is None else out
            for k, i in enumerate(group):
                row_logits = logits[batch.row == k]  # of bos, row and end
                n = max(1, len(rows[i]))
                out[i, :n] = row_logits[-n:]
                if not rows[i] and bos:
                    logp = row_logits[: len(bos)].double().log_softmax(-1)
                    self.bos_nll[i] = -float(logp[torch.arange(len(bos)), list(bos)].sum())
        assert out is not None
        return out
