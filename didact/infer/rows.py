"""The batch being decoded: each row reads one token per step; rows leave and enter between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from didact.models import prefix
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.models.prefix import Past

PREFILL = 2048  # most prompt tokens in one forward pass, so that activations stay in the processor's cache


class Rows:
    """Decoding state of a model type that `prefix.shares`: `logits (B, V)` of every row's next token.

    Rows are left-padded to end at the same column of the store, so that a step writes one column; padding is masked.

    Args:
        model: of a type that `prefix.shares`.
        shared: tokens that all prompts begin with, which are run once.
        kv_cache: the model's prefix cache: prompts continue from what is in it.
    """

    def __init__(self, model: Model, shared: Sequence[int] = (), kv_cache: KVCache | None = None) -> None:
        self.model, self.kv_cache = model, KVCache() if kv_cache is None and shared else kv_cache
        if self.kv_cache is not None and shared:
            past = self.kv_cache.past([shared], [len(shared) - 1])
            prefix.extend(model, past.store, [shared[past.position.shape[1] :]])
            self.kv_cache.keep(shared, past.store, 0, slice(None))
        self.store = prefix.Store()
        self.lengths: list[int] = []
        self.left: list[int] = []  # tokens a row may still read
        self.logits = torch.empty(0, device=model.device)

    def turn(
        self, survivors: Sequence[int], prompts: Sequence[Sequence[int]] = (), room: int = 0, copies: Sequence[int] = ()
    ) -> None:
        """Keep some rows and admit prompts after them.

        Args:
            survivors: indices of the rows that stay, in their new order; an index may repeat.
            prompts: token ids of the new rows' prompts, the shared prefix included.
            room: tokens each new row may read.
            copies: number of rows for each prompt (1).
        """
        segments = [(i, self.store.length - self.lengths[i], self.store.length) for i in survivors]
        parts = [(self.store, segments)] if segments else []
        lengths, remaining = [self.lengths[i] for i in survivors], [self.left[i] for i in survivors]
        logits = [self.logits[list(survivors)]] if segments else []
        counts = copies or [1] * len(prompts)
        depths = self.kv_cache.depths(prompts) if self.kv_cache else [0] * len(prompts)
        for group in _groups([len(p) - n for p, n in zip(prompts, depths, strict=True)]):
            group_prompts = [prompts[i] for i in group]
            read = [depths[i] for i in group]
            past = (
                self.kv_cache.past(group_prompts, read, room=max(map(len, group_prompts)))
                if self.kv_cache
                else Past.none()
            )
            ends = prefix.extend(
                self.model, past.store, [p[n:] for p, n in zip(group_prompts, read, strict=True)], past.position
            )
            sources = [k for k, i in enumerate(group) for _ in range(counts[i])]
            width = max(read)
            parts.append((past.store, [(k, width - read[k], width - read[k] + len(group_prompts[k])) for k in sources]))
            lengths += [len(group_prompts[k]) for k in sources]
            remaining += [room] * len(sources)
            logits.append(ends[sources])
        self.lengths, self.left, self.logits = lengths, remaining, torch.cat(logits)
        self.store = prefix.packed(parts, max(remaining))
        width = self.store.length
        starts = torch.tensor([width - n for n in lengths], device=self.model.device)
        columns = torch.arange(width + max(remaining), device=self.model.device)
        # Even without padding: transformers warns of pad tokens without a mask, and a model may generate one.
        self.mask = columns >= starts[:, None]
        self.positions = torch.tensor(lengths, device=self.model.device)[:, None]

    def remember(self, row: int, tokens: Sequence[int]) -> None:
        """Store a row in the prefix cache: `tokens` are the first it has read."""
        if self.kv_cache is not None:
            first = self.store.length - self.lengths[row]
            self.kv_cache.keep(tokens, self.store, row, slice(first, first + len(tokens)))

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; an index may repeat."""
        index = torch.tensor(rows, device=self.model.device)
        if rows != list(range(len(self.lengths))):
            self.store = self.store.select(index, room=max(self.left[i] for i in rows))
            self.mask = self.mask[index]
            self.logits, self.positions = self.logits[index], self.positions[index]
            self.lengths, self.left = [self.lengths[i] for i in rows], [self.left[i] for i in rows]

    def step(self, tokens: Tensor) -> None:
        """Every row reads one token `(B,)`; `logits` then predicts the one after it."""
        mask = self.mask[:, : self.store.length + 1]
        self.logits = prefix.step(self.model, self.store, tokens[:, None], self.positions, mask)[:, -1]
        # A finished row that is still in the batch may be at the context's end.
        self.positions = (self.positions + 1).clamp(max=self.model.context - 1)
        self.lengths = [n + 1 for n in self.lengths]
        self.left = [n - 1 for n in self.left]


class Reread:
    """Decoding state of any other model: every step rereads all rows from their first token. Exact and slow."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.prompts: list[list[int]] = []
        self.made: list[list[int]] = []
        self.logits = torch.empty(0, device=model.device)

    def turn(self, survivors: Sequence[int], prompts: Sequence[Sequence[int]] = (), room: int = 0) -> None:
        """Keep some rows and admit prompts after them; no store is allocated, so `room` is ignored."""
        start = self.model.pad if self.model.start is None else self.model.start
        self.keep(survivors)
        self.prompts += [list(p) for p in prompts]
        self.made += [[] if self.model.kind == "causal" else [start] for _ in prompts]
        self._read()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self.prompts, self.made = [self.prompts[i] for i in rows], [list(self.made[i]) for i in rows]

    def step(self, tokens: Tensor) -> None:
        """Every row reads one token `(B,)`."""
        for row, token in zip(self.made, tokens.tolist(), strict=True):
            row.append(token)
        self._read()

    def _read(self) -> None:
        # Row by row, without padding: how a model of an unknown type treats padding is unknown too.
        device, module = self.model.device, self.model.module
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in prefix.forward_arguments(module) else {}
        out = []
        for prompt, completion in zip(self.prompts, self.made, strict=True):
            if self.model.kind == "causal":
                output = module(
                    input_ids=torch.tensor([prompt + completion], device=device), use_cache=False, **options
                )
            else:
                output = module(
                    input_ids=torch.tensor([prompt], device=device),
                    decoder_input_ids=torch.tensor([completion], device=device),
                    use_cache=False,
                )
            out.append(output.logits[0, -1])
        self.logits = torch.stack(out)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Consecutive indices in groups whose padded size is at most `PREFILL` tokens (or one row)."""
    groups: list[list[int]] = []
    for i, length in enumerate(lengths):
        if groups and (len(groups[-1]) + 1) * max(length, *(lengths[k] for k in groups[-1])) <= PREFILL:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
