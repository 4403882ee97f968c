"""Keys and values of what a model has read, found again by its tokens: a row goes on where it leaves earlier rows.

A tree search reads the same beginnings over and over: a node's text is what its parent's was, and a step more. The
rows are kept in the order of their tokens, so that the one with the longest common beginning is a neighbour. What is
found this way is what vLLM's and SGLang's prefix caches find (Zheng et al. 2024, arXiv:2312.07104).
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
    """What one model has read, as long as its weights stay as they are.

    Args:
        most: bytes of keys and values; what was not used for longest is forgotten first.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.held = most, 0
        self._order: list[tuple[int, ...]] = []  # sorted; none is the beginning of another
        self._stores: dict[tuple[int, ...], Store] = {}  # the one used last is last

    def __len__(self) -> int:
        return len(self._order)

    def keep(self, tokens: Sequence[int], store: Store, row: int, columns: slice | Tensor) -> None:
        """Keep a row.

        Args:
            tokens: what was read, from the first token on.
            store: where its keys and values are.
            row: its row there.
            columns: and columns, one for each token.
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
        """How many tokens every row begins with are known, one of it always left over."""
        return [self._find(tuple(row[:-1]))[1] for row in rows]

    def past(self, rows: Sequence[Sequence[int]], most: Sequence[int], room: int = 0) -> Past:
        """The longest known beginning of every row, of at most `most[i]` tokens, and room for as many more."""
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
        """The kept row that begins most like these tokens, and how many are alike."""
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
