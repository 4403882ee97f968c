"""A prefix cache: keys and values of earlier rows, looked up by tokens; a row is run from where it first differs.

A tree search reads the same prefixes over and over: a node's text is its parent's and one more step. Rows are kept
sorted by their tokens, so that the one with the longest common prefix is a neighbour. It finds the same prefixes as
the caches of vLLM and SGLang (Zheng et al. 2024, arXiv:2312.07104).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

from didact.models import prefix
from didact.models.prefix import Layer, Past, Store

MOST = 1 << 30  # bytes


class KVCache:
    """A prefix cache of one model, valid as long as its weights do not change.

    Args:
        most: bytes of keys and values; the least recently used are evicted first.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.held = most, 0
        self._order: list[tuple[int, ...]] = []  # sorted; none is a prefix of another
        self._stores: dict[tuple[int, ...], Store] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._order)

    def keep(self, tokens: Sequence[int], store: Store, row: int, columns: slice | Tensor) -> None:
        """Add a row.

        Args:
            tokens: the row's tokens, from the first on.
            store: holds its keys and values.
            row: its row in the store.
            columns: its columns in the store, one per token.
        """
        key = tuple(tokens)
        at = bisect.bisect_right(self._order, key)
        if any(kept[: len(key)] == key for kept in self._order[max(at - 1, 0) : at + 1]):
            return
        if at and key[: len(self._order[at - 1])] == self._order[at - 1]:
            at -= 1
            self._forget(self._order[at])
        layers = []
        for layer in store.layers:
            keys, values = (x[row : row + 1, :, columns].clone() for x in (layer.keys, layer.values))
            layers.append(Layer(keys, values, len(key)))
        self._order.insert(at, key)
        self._stores[key] = Store(layers)
        self.held += _bytes(self._stores[key])
        while self.held > self.most:
            self._forget(next(iter(self._stores)))

    def depths(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Return the length of every row's cached prefix, without its last token."""
        return [self._find(tuple(row[:-1]))[1] for row in rows]

    def past(self, rows: Sequence[Sequence[int]], most: Sequence[int], room: int = 0) -> Past:
        """Return every row's longest cached prefix, of at most `most[i]` tokens, with `room` free columns."""
        matches = [self._find(tuple(row[:n])) for row, n in zip(rows, most, strict=True)]
        width = max((depth for _, depth in matches), default=0)
        if not width:
            return Past.none(len(rows))
        first = next(key for key, depth in matches if depth)
        parts = [(self._stores[key if depth else first], [(0, 0, depth)]) for key, depth in matches]
        packed = prefix.packed(parts, room)
        device = packed.layers[0].keys.device
        missing = torch.tensor([[width - depth] for _, depth in matches], device=device)
        return Past(packed, torch.arange(width, device=device) - missing)

    def _find(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Return the cached row with the longest common prefix, and its length."""
        at = bisect.bisect_left(self._order, tokens)
        best: tuple[int, ...] = ()
        depth = 0
        for key in self._order[max(at - 1, 0) : at + 1]:
            pairs = enumerate(zip(key, tokens, strict=False))
            common = next((i for i, (a, b) in pairs if a != b), min(len(key), len(tokens)))
            if common > depth:
                best, depth = key, common
        if depth:
            self._stores[best] = self._stores.pop(best)
        return best, depth

    def _forget(self, tokens: tuple[int, ...]) -> None:
        self._order.pop(bisect.bisect_left(self._order, tokens))
        self.held -= _bytes(self._stores.pop(tokens))


def _bytes(store: Store) -> int:
    return sum(x.numel() * x.element_size() for layer in store.layers for x in (layer.keys, layer.values))
