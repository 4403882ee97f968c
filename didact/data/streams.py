"""Streams: named sources of rows side by side, and batches that are a pure function of (seed, step).

A stream's item is a tuple of rows that must stay in one batch (a pair for DPO). One logical batch
holds some items of every stream; it knows its own sizes, so a loss may be summed over any split of
it (micro-batches, ranks) and divided once by the size of the whole.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact.data.encode import TokenizedExample
from didact.data.packing import Packing, Tree, packed
from didact.data.packing import trees as tree_layout

ExampleGroup = tuple[TokenizedExample, ...]
IGNORE = -100


@dataclass(frozen=True)
class Stream:
    """Tuples of rows, drawn without replacement epoch by epoch. `rows`: items per step."""

    items: Sequence[ExampleGroup]
    rows: int

    @classmethod
    def of(cls, rows_: Sequence[TokenizedExample], per_step: int) -> Stream:
        """A stream of single rows."""
        return cls([(r,) for r in rows_], per_step)


@dataclass(frozen=True)
class Tokens:
    """Rows for one forward pass, padded or laid out in trees, and the label tokens, row after row.

    `input_ids, attention_mask`: `(B, T)`, what the model reads and which of it is not padding. `at (N,)` is the
    position where each label token is predicted, an index into the B T positions; branches of one prompt have their
    first labels at the same position. `target (N,)` are the label tokens, `row (N,)` the rows they belong to.
    `decoder_input_ids (R, U)` for seq2seq models, where `at` counts the decoder's positions and `source (R,)`,
    if rows share prompts, is the index of the prompt that each reads. `position_ids, reach (B, T)`: see
    `data.packing`; None if every physical row is one row from its left end.
    """

    input_ids: Tensor
    attention_mask: Tensor
    at: Tensor
    target: Tensor
    row: Tensor
    decoder_input_ids: Tensor | None = None
    source: Tensor | None = None
    position_ids: Tensor | None = None
    reach: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Where label tokens are predicted, `(B, T)` bool."""
        spots = torch.zeros_like(self._predicting, dtype=torch.bool)
        spots.view(-1)[self.at] = True
        return spots

    @property
    def labels(self) -> Tensor:
        """The label predicted at each position, `(B, T)`; -100 is none.

        Raises:
            ValueError: branches predict several at one position; `unrolled` gives each row its own.
        """
        if self.reach is not None and len(self.at.unique()) < len(self.at):
            raise ValueError("several label tokens are predicted at one position")
        out = torch.full_like(self._predicting, IGNORE)
        out.view(-1)[self.at] = self.target
        return out

    @property
    def _predicting(self) -> Tensor:
        return self.input_ids if self.decoder_input_ids is None else self.decoder_input_ids

    def everywhere(self) -> Tokens:
        """The same rows with a label position at every token they read, and dummy targets: for KL over all tokens.

        A token that rows share counts once for each of them.
        """
        if self.decoder_input_ids is not None:
            return self
        row, at = self._paths()
        return replace(self, at=at, target=torch.zeros_like(at), row=row)

    def unrolled(self) -> Tokens:
        """The same rows and label tokens, padded, each row by itself: for models that take no custom mask."""
        if self.reach is None:
            return self
        row, at = self._paths()
        counts = torch.bincount(row)
        starts = counts.cumsum(0) - counts
        column = torch.arange(len(at), device=at.device) - starts[row]
        width = int(counts.max())
        ids = self.input_ids.new_zeros(len(counts), width)
        mask = self.attention_mask.new_zeros(len(counts), width)
        ids[row, column] = self.input_ids.view(-1)[at]
        mask[row, column] = 1
        depth = column.new_zeros(self.input_ids.numel())
        depth[at] = column
        return Tokens(ids, mask, self.row * width + depth[self.at], self.target, self.row)

    def chained(self) -> Tokens:
        """The same with `reach` also for plain rows, so that a row's mask is that of a tree with one path."""
        if self.reach is not None:
            return self
        rows, width = self.input_ids.shape
        ends = torch.full_like(self.input_ids, width)
        return replace(self, position_ids=torch.arange(width, device=ends.device).expand(rows, width), reach=ends)

    def _paths(self) -> tuple[Tensor, Tensor]:
        """The row and the position of every token of every row, row after row."""
        if self.reach is None:
            at = self.attention_mask.reshape(-1).nonzero()[:, 0]
            return at // self.input_ids.shape[1], at
        width = self.input_ids.shape[1]
        rows = int(self.row.max()) + 1
        end = self.at.new_zeros(rows).scatter_reduce(0, self.row, self.at, "amax")  # a row's last label is at its end
        line, last = end // width, end % width
        j = torch.arange(width, device=self.at.device)
        row, column = ((j <= last[:, None]) & (last[:, None] < self.reach[line])).nonzero(as_tuple=True)
        return row, line[row] * width + column

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return Tokens(**moved)


def collate(
    rows: Sequence[TokenizedExample],
    kind: str = "causal",
    pad: int = 0,
    start: int | None = None,
    packing: Packing | None = None,
) -> Tokens:
    """Rows as tensors, padded on the right; with a packing they share prefixes where that is cheaper.

    Causal models read prompt + completion without its last token, which is only a label. Rows of seq2seq models
    with the same prompt share it.
    """
    if kind != "seq2seq":
        return of_trees(rows, tree_layout(rows, packing), pad)
    prompts = {prompt: n for n, prompt in enumerate(dict.fromkeys(r.prompt for r in rows))}
    first = pad if start is None else start
    source = torch.tensor([prompts[r.prompt] for r in rows]) if len(prompts) < len(rows) else None
    shifted = padded([(first, *r.completion[:-1]) for r in rows], pad)
    spots = [np.arange(len(r.completion)) + i * shifted.shape[1] for i, r in enumerate(rows)]
    ids, mask = padded(list(prompts), pad), padded([[1] * len(p) for p in prompts], 0)
    return Tokens(ids, mask, *_labels(rows, spots), shifted, source)


def of_trees(rows: Sequence[TokenizedExample], trees: Sequence[Tree], pad: int = 0) -> Tokens:
    """Trees as tensors, one per physical row; labels in the order of `rows`, which the paths refer to by number."""
    plain = all(len(t.paths) == 1 and not t.position[:1].any() for t in trees)
    if plain:  # physical rows are the rows
        trees = sorted(trees, key=lambda t: t.paths[0].row)
    width = max((t.width for t in trees), default=0)
    spots: list[Any] = [None] * len(rows)
    for line, tree in enumerate(trees):
        for path in tree.paths:
            n = len(rows[path.row].completion)
            spots[path.row] = path.spots[len(path.spots) - n :] + line * width
    ids, mask = padded([t.ids for t in trees], pad), padded([np.ones(t.width) for t in trees], 0)
    if plain:
        return Tokens(ids, mask, *_labels(rows, spots))
    position, reach = padded([t.position for t in trees], 0), padded([t.reach for t in trees], 0)
    # Padding attends to itself, so that no row of the mask is empty: kernels differ on such rows.
    reach = torch.where(mask.bool(), reach, torch.arange(1, width + 1))
    return Tokens(ids, mask, *_labels(rows, spots), position_ids=position, reach=reach)


def by_length(lengths: Sequence[int], micro_tokens: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Indices grouped so that each padded group has at most `micro_tokens` tokens (or one member), longest first.

    Member i is `rows[i]` physical rows (one by default) of at most `lengths[i]` tokens.
    """
    groups: list[list[int]] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        count = rows[i] if rows is not None else 1
        if groups and (total + count) * lengths[groups[-1][0]] <= micro_tokens:
            groups[-1].append(i)
            total += count
        else:
            groups.append([i])
            total = count
    return groups


@dataclass(frozen=True)
class MicroBatch:
    """Part of one stream's share of a batch, ready for a forward pass.

    Rows are item-major: row r belongs to item `r // arity`; `index (items,)` are the indices of these
    items in the stream, to look up what was cached for them.
    """

    stream: str
    tokens: Tokens
    index: Tensor
    arity: int

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.index)

    def column(self, values: Sequence[Tensor]) -> Tensor:
        """One value for each label token, `(N,)`: `values[i]` has those of the stream's item i, row after row."""
        return torch.cat([values[i] for i in self.index.tolist()]).to(self.tokens.target.device)

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(self.stream, self.tokens.to(device), self.index.to(device), self.arity)


@dataclass(frozen=True)
class Batch:
    """One logical batch of token rows. `sizes` count the whole of it: `{stream}.rows` items,
    `{stream}.tokens` label tokens, `{stream}.seen` positions that the rows read, and the same over all streams; a
    prefix that rows share under a `packing` counts for each of them."""

    items: Mapping[str, Sequence[ExampleGroup]]
    index: Mapping[str, Sequence[int]]
    kind: str = "causal"
    pad: int = 0
    start: int | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    packing: Packing | None = None

    def __post_init__(self) -> None:
        if not self.sizes:
            sizes: dict[str, float] = {}
            for name, items in self.items.items():
                sizes[f"{name}.rows"] = len(items)
                sizes[f"{name}.tokens"] = sum(len(r.completion) for item in items for r in item)
                sizes[f"{name}.seen"] = sum(r.size - (self.kind == "causal") for item in items for r in item)
            for unit in ("rows", "tokens", "seen"):
                sizes[unit] = sum(v for k, v in sizes.items() if k.endswith(f".{unit}"))
            object.__setattr__(self, "sizes", sizes)

    def shard(self, rank: int, world: int) -> Batch:
        """This rank's items; the sizes stay those of the whole."""
        items = {k: v[rank::world] for k, v in self.items.items()}
        index = {k: v[rank::world] for k, v in self.index.items()}
        return Batch(items, index, self.kind, self.pad, self.start, self.sizes, self.packing)

    def split(self, micro_tokens: int | None) -> list[MicroBatch]:
        """Micro-batches of one stream each, sorted by length; None keeps every stream whole.

        `micro_tokens` counts physical tokens: what the rows of an item share counts once.
        """
        out = []
        for name, items in self.items.items():
            if not items:
                continue
            layouts = [self._layout(item) for item in items]
            widths, lines = [max(widths) for widths, _ in layouts], [len(widths) for widths, _ in layouts]
            groups = [list(range(len(items)))] if micro_tokens is None else by_length(widths, micro_tokens, lines)
            arity = len(items[0])
            for group in groups:
                rows = [r for i in group for r in items[i]]
                index = torch.tensor([self.index[name][i] for i in group])
                out.append(MicroBatch(name, self._tokens(rows, [layouts[i][1] for i in group], arity), index, arity))
        return out

    def _layout(self, item: ExampleGroup) -> tuple[list[int], list[Tree]]:
        """The widths of an item's physical rows, and its trees."""
        if self.kind == "seq2seq":
            return [r.size for r in item], []
        trees = tree_layout(item, self.packing)
        return [t.width for t in trees], trees

    def _tokens(self, rows: Sequence[TokenizedExample], layouts: Sequence[list[Tree]], arity: int) -> Tokens:
        if self.kind == "seq2seq":
            return collate(rows, self.kind, self.pad, self.start)
        trees = [t.renumbered(n * arity) for n, item in enumerate(layouts) for t in item]
        if self.packing is not None and self.packing.pack and len(fewer := packed(trees)) * 8 <= len(trees) * 7:
            trees = fewer
        return of_trees(rows, trees, self.pad)


class Batches:
    """`batches(step)` draws every stream's items for that step: a pure function of (seed, step)."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        seed: int,
        kind: str = "causal",
        pad: int = 0,
        start: int | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.streams, self.seed = dict(streams), seed
        self.kind, self.pad, self.start, self.packing = kind, pad, start, packing
        self._order = functools.lru_cache(maxsize=64)(self._shuffled)

    def __call__(self, step: int) -> Batch:
        """The logical batch of a step."""
        index = {name: self._draw(name, step) for name in self.streams}
        items = {name: [self.streams[name].items[i] for i in index[name]] for name in index}
        return Batch(items, index, self.kind, self.pad, self.start, packing=self.packing)

    def drawn(self, name: str, steps: int) -> list[int]:
        """Indices of a stream's items that the first `steps` steps draw."""
        count = len(self.streams[name].items)
        if steps * self.streams[name].rows >= count:
            return list(range(count))
        return sorted({i for step in range(steps) for i in self._draw(name, step)})

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


def padded(sequences: Sequence[Any], value: int) -> Tensor:
    """Rows of integers as one tensor `(R, T)`, `value` to the right of shorter ones."""
    width = max((len(s) for s in sequences), default=0)
    out = np.full((len(sequences), width), value, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        out[i, : len(sequence)] = sequence
    return torch.from_numpy(out)


def _labels(rows: Sequence[TokenizedExample], spots: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The position, the id and the row of each label token, row after row."""
    at = np.concatenate([*spots, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    target = [token for r in rows for token in r.completion]
    row = np.repeat(np.arange(len(rows)), [len(r.completion) for r in rows])
    return torch.from_numpy(at), torch.tensor(target, dtype=torch.long), torch.from_numpy(row)
