"""A key/value cache with room at its end, and common prefixes that are run once.

`prefill` runs tokens once; `Store.select` gives each of its rows to as many branches as wanted. That is
exact for the model types in `PROVEN` (the parity test goes through all of them); others take the plain path.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from didact.models.model import Model

# Types whose forward is exact from a store: attention over all the keys it is given, positions from
# `position_ids` or the mask. Sliding windows are kept by the mask, by column: every row is contiguous.
PROVEN = {
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "mistral", "gemma2", "gemma3_text", "bloom",
}  # fmt: skip


class Layer(CacheLayerMixin):
    """Keys and values `(B, H, T, D)` of one layer; only the first `length` of their columns are filled.

    transformers' own dynamic layer copies everything at every token; here a token is written into the
    room `Store.select` or `Store.packed` left. Without room the layer grows by concatenation, and
    gradients go through.
    """

    is_sliding = False

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, length: int = 0) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.is_initialized = keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns all filled columns."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        at, end = self.length, self.length + key_states.shape[-2]
        if end <= self.keys.shape[-2]:
            self.keys[:, :, at:end], self.values[:, :, at:end] = key_states, value_states
        else:
            self.keys = torch.cat([self.keys[:, :, :at], key_states], 2)
            self.values = torch.cat([self.values[:, :, :at], value_states], 2)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with these columns, without room."""
        self.keys, self.values, self.length = key_states, value_states, key_states.shape[-2]
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns a query sees, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Filled columns."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class Store(Cache):
    """One `Layer` for each layer of a model: what a forward takes as `past_key_values`."""

    layers: list[Any]  # of `Layer`

    def __init__(self, layers: list[Layer] | None = None) -> None:
        if layers is None:
            super().__init__(layer_class_to_replicate=Layer)
        else:
            super().__init__(layers=list(layers))

    @property
    def length(self) -> int:
        """Filled columns."""
        return self.get_seq_length()

    def select(self, index: Tensor, room: int = 0) -> Store:
        """A store of its own with these rows `(n,)`, repeated or reordered at will, and `room` free columns."""
        layers = []
        for layer in self.layers:
            keys, values = (x[:, :, : layer.length].index_select(0, index) for x in (layer.keys, layer.values))
            if room:
                keys, values = (torch.nn.functional.pad(x, (0, 0, 0, room)) for x in (keys, values))
            layers.append(Layer(keys, values, layer.length))
        return Store(layers)


class Past(NamedTuple):
    """What the rows of a batch go on from.

    Attributes:
        store: keys and values; of one row, where all rows go on from the same.
        position: of every column for every row, `(B or 1, W)`; negative where the column is not the row's. Rows
            end at the last column.
    """

    store: Store
    position: Tensor

    @staticmethod
    def none(rows: int = 1) -> Past:
        """Rows that begin at the beginning."""
        return Past(Store(), torch.zeros(rows, 0, dtype=torch.long))

    @property
    def depth(self) -> Tensor:
        """Tokens of every row, `(B or 1,)`."""
        return (self.position >= 0).sum(1)


def packed(parts: Sequence[tuple[Store, Sequence[tuple[int, int, int]]]], room: int) -> Store:
    """Rows of several stores in one, all ending at the same column, with `room` free columns after it.

    Args:
        parts: stores, each with the pieces `(row, first, last)` that are taken from it: columns `first:last`
            of that row become a row of the result.
        room: columns that will be appended.

    Returns:
        A store `width = max(last - first)` columns long; what lies before a shorter row is zero.
    """
    all_pieces = [piece for _, pieces in parts for piece in pieces]
    width = max(last - first for _, first, last in all_pieces)
    layers = []
    for index, layer in enumerate(parts[0][0].layers):
        pair = []
        for name in ("keys", "values"):
            x = getattr(layer, name)
            out = x.new_zeros(len(all_pieces), x.shape[1], width + room, x.shape[3])
            out_row = 0
            for store, pieces in parts:
                source = getattr(store.layers[index], name)
                for row, first, last in pieces:
                    out[out_row, :, width - (last - first) : width] = source[row, :, first:last]
                    out_row += 1
            pair.append(out)
        layers.append(Layer(pair[0], pair[1], width))
    return Store(layers)


def shares(model: Model) -> bool:
    """Whether this model's forward from a store is proven exact."""
    config: Any = getattr(inner_of(model), "config", None)
    return (
        model.kind == "causal"
        and getattr(config, "model_type", None) in PROVEN
        and getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
        and not learned_prompt(model)
        and fixed_positions(config)
    )


def learned_prompt(model: Model) -> bool:
    """Whether an adapter puts tokens of its own before every row: only its own forward knows them."""
    tuned: Any = getattr(model.module, "active_peft_config", None)
    return bool(getattr(tuned, "is_prompt_learning", False) or getattr(tuned, "is_adaption_prompt", False))


def fixed_positions(config: Any) -> bool:
    """Whether a token's rotation depends on its position only, not on the longest row of the batch."""
    return not any(kind in str(getattr(config, "rope_parameters", "")) for kind in ("dynamic", "longrope"))


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, at least one of each left over."""
    if len(rows) < 2:
        return 0
    shortest = min(map(len, rows))
    count = next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), shortest)
    return max(0, min(count, shortest - 1))


def prefill(model: Model, ids: Sequence[int]) -> Store:
    """Run one row of tokens and keep its keys and values."""
    store = Store()
    extend(model, store, [ids])
    return store


def expand(store: Store, n: int, room: int = 0) -> Store:
    """Each row `n` times, row-major, with `room` free columns."""
    rows = store.layers[0].keys.shape[0]
    index = torch.arange(rows, device=store.layers[0].keys.device).repeat_interleave(n)
    return store.select(index, room)


def extend(model: Model, store: Store, rows: Sequence[Sequence[int]], position: Tensor | None = None) -> Tensor:
    """Run one non-empty row of tokens after each row of a store; returns the logits after its last token, `(B, V)`.

    The store (empty, or as many rows as given here) is changed in place. Rows are padded on the right, where causal
    attention never looks; with their own last token, for transformers warns of pad tokens without a mask.

    Args:
        model: of a proven type.
        store: what came before.
        rows: what comes now.
        position: of the store's columns, where its rows are not of one length (see `Past`).
    """
    past = store.length
    lengths = torch.tensor([len(r) for r in rows], device=model.device)
    width = int(lengths.max())
    ids = torch.tensor([[*r, *[r[-1]] * (width - len(r))] for r in rows], device=model.device)
    columns = torch.arange(width, device=model.device)
    mask, first = None, torch.full((1, 1), past, device=model.device)
    if position is not None and past and bool((position < 0).any()):
        mask = torch.cat([position >= 0, position.new_ones(len(rows), width, dtype=torch.bool)], 1)
        first = position[:, -1:] + 1
    # Where a row ends, its logits are; the head is run at those columns only.
    ends, end_index = (lengths - 1).unique(return_inverse=True)
    logits = step(model, store, ids, first + columns, mask, keep=ends)
    if logits.shape[1] == width:
        end_index = lengths - 1
    return logits[torch.arange(len(rows), device=model.device), end_index]


def step(
    model: Model, store: Store, ids: Tensor, positions: Tensor, mask: Tensor | None = None, keep: Tensor | int = 1
) -> Tensor:
    """The model's forward on tokens `(B, T)` from a store; logits at the columns `keep`, where its head can choose.

    Args:
        model: of a proven type.
        store: what came before; the tokens are appended to it.
        ids: tokens `(B, T)`.
        positions: their positions `(1 or B, T)`.
        mask: which of the store's and these columns are real, `(B, past + T)`; None where all are.
        keep: columns `(k,)` whose logits are wanted, or how many at the end.
    """
    options: dict[str, Any] = {"logits_to_keep": keep} if "logits_to_keep" in takes(model.module) else {}
    if "position_ids" in takes(model.module):
        options["position_ids"] = positions.expand(len(ids), -1)
    return model.module(input_ids=ids, attention_mask=mask, past_key_values=store, use_cache=True, **options).logits


def inner_of(model: Model) -> Any:
    """The transformers model inside a PEFT wrapper, or the module itself."""
    return _inner(model.module)


def takes(module: Any) -> Collection[str]:
    """What the forward of the transformers model in a module may be given, by name."""
    return inspect.signature(type(_inner(module)).forward).parameters


def _inner(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module
