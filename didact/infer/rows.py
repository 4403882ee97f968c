"""Rows being decoded side by side: each reads one token a step; rows leave and enter between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from didact.models import prefix
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.models.prefix import Past

PREFILL = 2048  # prompt tokens run at once: what is made of them stays in the processor's cache


class Rows:
    """Decoding state of a model type that `prefix.shares`: `logits (B, V)` of every row's next token.

    Rows end at the same column of the store, so that a step writes one column; what lies left of a shorter
    row is masked.

    Args:
        model: of a type that shares.
        shared: tokens all prompts begin with, which are run once.
        memory: what the model has read before: prompts go on from there.
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
        self, kept: Sequence[int], prompts: Sequence[Sequence[int]] = (), room: int = 0, copies: Sequence[int] = ()
    ) -> None:
        """Keep some rows and admit prompts after them.

        Args:
            kept: rows that stay, in their new order; a row may be named more than once.
            prompts: token ids of the new rows' prompts, the shared prefix included.
            room: tokens each new row may read.
            copies: how many rows each prompt becomes (1).
        """
        taken = [(i, self.store.length - self.lengths[i], self.store.length) for i in kept]
        parts = [(self.store, taken)] if taken else []
        lengths, left = [self.lengths[i] for i in kept], [self.left[i] for i in kept]
        logits = [self.logits[list(kept)]] if taken else []
        counts = copies or [1] * len(prompts)
        known = self.kv_cache.depths(prompts) if self.kv_cache else [0] * len(prompts)
        for group in _groups([len(p) - n for p, n in zip(prompts, known, strict=True)]):
            some = [prompts[i] for i in group]
            depth = [known[i] for i in group]
            past = self.kv_cache.past(some, depth, room=max(map(len, some))) if self.kv_cache else Past.none()
            ends = prefix.extend(
                self.model, past.store, [p[n:] for p, n in zip(some, depth, strict=True)], past.position
            )
            which = [k for k, i in enumerate(group) for _ in range(counts[i])]
            width = max(depth)
            parts.append((past.store, [(k, width - depth[k], width - depth[k] + len(some[k])) for k in which]))
            lengths += [len(some[k]) for k in which]
            left += [room] * len(which)
            logits.append(ends[which])
        self.lengths, self.left, self.logits = lengths, left, torch.cat(logits)
        self.store = prefix.packed(parts, max(left))
        width = self.store.length
        starts = torch.tensor([width - n for n in lengths], device=self.model.device)
        columns = torch.arange(width + max(left), device=self.model.device)
        # Also where all rows are alike: transformers warns of a pad token without a mask, and a model may say one.
        self.mask = columns >= starts[:, None]
        self.positions = torch.tensor(lengths, device=self.model.device)[:, None]

    def remember(self, row: int, tokens: Sequence[int]) -> None:
        """Leave a row to the memory: `tokens` are the first it has read."""
        if self.kv_cache is not None:
            first = self.store.length - self.lengths[row]
            self.kv_cache.keep(tokens, self.store, row, slice(first, first + len(tokens)))

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order; one may be named more than once."""
        index = torch.tensor(rows, device=self.model.device)
        if rows != list(range(len(self.lengths))):
            self.store = self.store.select(index, room=max(self.left[i] for i in rows))
            self.mask = self.mask[index]
            self.logits, self.positions = self.logits[index], self.positions[index]
            self.lengths, self.left = [self.lengths[i] for i in rows], [self.left[i] for i in rows]

    def step(self, tokens: Tensor) -> None:
        """Every row reads one token `(B,)`; `logits` is what comes after it."""
        mask = self.mask[:, : self.store.length + 1]
        self.logits = prefix.step(self.model, self.store, tokens[:, None], self.positions, mask)[:, -1]
        # A finished row that still runs beside others may be at the context's end.
        self.positions = (self.positions + 1).clamp(max=self.model.context - 1)
        self.lengths = [n + 1 for n in self.lengths]
        self.left = [n - 1 for n in self.left]


class Reread:
    """The same for any model: every step reads all rows from their first token. Exact and slow."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.prompts: list[list[int]] = []
        self.made: list[list[int]] = []
        self.logits = torch.empty(0, device=model.device)

    def turn(self, kept: Sequence[int], prompts: Sequence[Sequence[int]] = (), room: int = 0) -> None:
        """Keep some rows and admit prompts after them; memory is no concern, so neither is `room`."""
        start = self.model.pad if self.model.start is None else self.model.start
        self.keep(kept)
        self.prompts += [list(p) for p in prompts]
        self.made += [[] if self.model.kind == "causal" else [start] for _ in prompts]
        self._read()

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order."""
        self.prompts, self.made = [self.prompts[i] for i in rows], [list(self.made[i]) for i in rows]

    def step(self, tokens: Tensor) -> None:
        """Every row reads one token `(B,)`."""
        for row, token in zip(self.made, tokens.tolist(), strict=True):
            row.append(token)
        self._read()

    def _read(self) -> None:
        # Row by row, without padding: what a model of an unknown type does with padding is unknown too.
        device, module = self.model.device, self.model.module
        last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in prefix.takes(module) else {}
        out = []
        for prompt, made in zip(self.prompts, self.made, strict=True):
            if self.model.kind == "causal":
                read = module(input_ids=torch.tensor([prompt + made], device=device), use_cache=False, **last)
            else:
                read = module(
                    input_ids=torch.tensor([prompt], device=device),
                    decoder_input_ids=torch.tensor([made], device=device),
                    use_cache=False,
                )
            out.append(read.logits[0, -1])
        self.logits = torch.stack(out)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in order, in groups whose padded size is at most `PREFILL` tokens (or one row)."""
    groups: list[list[int]] = []
    for i, length in enumerate(lengths):
        if groups and (len(groups[-1]) + 1) * max(length, *(lengths[k] for k in groups[-1])) <= PREFILL:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
