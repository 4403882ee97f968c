"""Streams: named sources of rows side by side, and batches that are a pure function of (seed, step).

A stream's item is a tuple of rows that must be seen together (a pair for DPO). One logical batch
holds some items of every stream; it knows its own sizes, so a loss may be summed over any split of
it (micro-batches, ranks) and divided once by the size of the whole.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact.data.encode import Row

Item = tuple[Row, ...]
IGNORE = -100


@dataclass(frozen=True)
class Stream:
    """Rows or tuples of rows, drawn without replacement epoch by epoch. `rows`: items a step."""

    items: Sequence[Item]
    rows: int

    @classmethod
    def of(cls, rows_: Sequence[Row], per_step: int) -> Stream:
        """A stream of single rows."""
        return cls([(r,) for r in rows_], per_step)


@dataclass(frozen=True)
class Tokens:
    """Padded rows for one forward pass. `labels[b, t]` is predicted at position t; -100 is no label.

    `input_ids, attention_mask, labels`: `(B, T)`; for seq2seq models `decoder_input_ids` has the
    labels' shape and `input_ids` the prompt's.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    decoder_input_ids: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Where a label token is predicted, `(B, T)` bool."""
        return self.labels != IGNORE

    @property
    def target(self) -> Tensor:
        """The label tokens, `(N,)`."""
        return self.labels[self.mask]

    @property
    def row(self) -> Tensor:
        """Which row each label token belongs to, `(N,)`."""
        return self.mask.nonzero()[:, 0]

    def everywhere(self) -> Tokens:
        """The same rows with every real position a label position, its target meaningless: for KL over all tokens."""
        if self.decoder_input_ids is not None:
            return self
        spots = torch.where(self.attention_mask.bool(), 0, IGNORE)
        return Tokens(self.input_ids, self.attention_mask, spots)

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return Tokens(**moved)


def collate(rows: Sequence[Row], kind: str = "causal", pad: int = 0, start: int | None = None) -> Tokens:
    """Pad rows on the right. Causal models read prompt + completion less its last token, which only labels."""
    if kind == "seq2seq":
        ids, labels = [r.prompt for r in rows], [r.completion for r in rows]
        first = pad if start is None else start
        shifted = [(first, *r.completion[:-1]) for r in rows]
        return Tokens(
            _padded(ids, pad), _padded([[1] * len(i) for i in ids], 0), _padded(labels, IGNORE), _padded(shifted, pad)
        )
    ids = [(r.prompt + r.completion)[:-1] for r in rows]
    labels = [(IGNORE,) * (len(r.prompt) - 1) + r.completion for r in rows]
    return Tokens(_padded(ids, pad), _padded([[1] * len(i) for i in ids], 0), _padded(labels, IGNORE))


def by_length(lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Indices grouped so that each padded group has at most `micro_tokens` tokens (or one row), longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= micro_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@dataclass(frozen=True)
class Micro:
    """Part of one stream's share of a batch, ready for a forward pass.

    Rows are item-major: row r belongs to item `r // arity`; `index (items,)` says which items of the
    stream these are, to look up what was cached for them.
    """

    stream: str
    tokens: Tokens
    index: Tensor
    arity: int

    @property
    def items(self) -> int:
        """How many items are here."""
        return len(self.index)

    def to(self, device: torch.device | str) -> Micro:
        """The same on another device."""
        return Micro(self.stream, self.tokens.to(device), self.index.to(device), self.arity)


@dataclass(frozen=True)
class Batch:
    """One logical batch of token rows. `sizes` count the whole of it: `{stream}.rows` items,
    `{stream}.tokens` label tokens, `{stream}.seen` positions the model runs over, and the same over all streams."""

    items: Mapping[str, Sequence[Item]]
    index: Mapping[str, Sequence[int]]
    kind: str = "causal"
    pad: int = 0
    start: int | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sizes:
            sizes: dict[str, float] = {}
            for name, items in self.items.items():
                sizes[f"{name}.rows"] = len(items)
                sizes[f"{name}.tokens"] = sum(len(r.completion) for item in items for r in item)
                sizes[f"{name}.seen"] = sum(r.size - (self.kind == "causal") for item in items for r in item)
            for what in ("rows", "tokens", "seen"):
                sizes[what] = sum(v for k, v in sizes.items() if k.endswith(f".{what}"))
            object.__setattr__(self, "sizes", sizes)

    def shard(self, rank: int, world: int) -> Batch:
        """This rank's items; the sizes stay those of the whole."""
        items = {k: v[rank::world] for k, v in self.items.items()}
        index = {k: v[rank::world] for k, v in self.index.items()}
        return Batch(items, index, self.kind, self.pad, self.start, self.sizes)

    def split(self, micro_tokens: int | None) -> list[Micro]:
        """Micro-batches of one stream each, sorted by length; None keeps every stream whole."""
        out = []
        for name, items in self.items.items():
            if not items:
                continue
            lengths = [max(r.size for r in item) * len(item) for item in items]
            groups = [list(range(len(items)))] if micro_tokens is None else by_length(lengths, micro_tokens)
            for group in groups:
                rows = [r for i in group for r in items[i]]
                tokens = collate(rows, self.kind, self.pad, self.start)
                index = torch.tensor([self.index[name][i] for i in group])
                out.append(Micro(name, tokens, index, len(items[0])))
        return out


class Batches:
    """`batches(step)` draws every stream's items for that step: a pure function of (seed, step)."""

    def __init__(
        self, streams: Mapping[str, Stream], seed: int, kind: str = "causal", pad: int = 0, start: int | None = None
    ) -> None:
        self.streams, self.seed, self.kind, self.pad, self.start = dict(streams), seed, kind, pad, start
        self._order = functools.lru_cache(maxsize=64)(self._shuffled)

    def __call__(self, step: int) -> Batch:
        """The logical batch of a step."""
        index = {name: self._draw(name, step) for name in self.streams}
        items = {name: [self.streams[name].items[i] for i in index[name]] for name in index}
        return Batch(items, index, self.kind, self.pad, self.start)

    def _draw(self, name: str, step: int) -> list[int]:
        stream = self.streams[name]
        n = len(stream.items)
        spots = range(step * stream.rows, (step + 1) * stream.rows)
        return [int(self._order(name, spot // n)[spot % n]) for spot in spots]

    def _shuffled(self, name: str, epoch: int) -> Any:
        n = len(self.streams[name].items)
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), epoch]).permutation(n)


@dataclass(frozen=True)
class Tensors:
    """A logical batch for modules without tokens: named tensors that share their first axis."""

    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sizes:
            object.__setattr__(self, "sizes", {"rows": float(self._rows())})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def shard(self, rank: int, world: int) -> Tensors:
        """This rank's rows; the sizes stay those of the whole."""
        return Tensors({k: v[rank::world] for k, v in self.tensors.items()}, self.sizes)

    def split(self, micro_tokens: int | None) -> list[Tensors]:
        """Micro-batches of at most `micro_tokens` rows."""
        n = self._rows()
        size = n if micro_tokens is None else micro_tokens
        return [
            Tensors({k: v[i : i + size] for k, v in self.tensors.items()}, self.sizes)
            for i in range(0, n, max(size, 1))
        ]

    def to(self, device: torch.device | str) -> Tensors:
        """The same on another device."""
        return Tensors({k: v.to(device) for k, v in self.tensors.items()}, self.sizes)

    def _rows(self) -> int:
        return len(next(iter(self.tensors.values())))


def _padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max((len(s) for s in sequences), default=0)
    out = torch.full((len(sequences), width), value, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        out[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return out
