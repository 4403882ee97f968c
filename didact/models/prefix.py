"""A key/value cache with preallocated columns, and common prefixes that are run once.

`prefill` runs tokens once; `Store.select` copies its rows to any number of branches. That is exact for the
model types in `PROVEN` (the parity test covers all of them); others take the plain path.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from didact.models.model import Model

# Types whose forward is exact from a store: attention over all given keys, positions from `position_ids`
# or the mask. Sliding windows are applied by the mask, by column: every row is contiguous.
PROVEN = {
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "mistral", "gemma2", "gemma3_text", "bloom",
}  # fmt: skip


class Layer(CacheLayerMixin):
    """Keys and values `(B, H, T, D)` of one layer; only the first `length` of their columns are filled.

    transformers' own dynamic layer copies everything at every token; here a token is written into the
    free columns that `Store.select` or `packed` left. Without any the layer grows by concatenation, which
    passes gradients.
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
        """Start with these columns, without free ones."""
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
    """The `past_key_values` of a model's forward, one `Layer` per layer."""

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
        """Copy the rows `index (n,)`, with any repetition and order, to a new store with `room` free columns."""
        layers = []
        for layer in self.layers:
            keys, values = (x[:, :, : layer.length].index_select(0, index) for x in (layer.keys, layer.values))
            if room:
                keys, values = (torch.nn.functional.pad(x, (0, 0, 0, room)) for x in (keys, values))
            layers.append(Layer(keys, values, layer.length))
        return Store(layers)


class Past(NamedTuple):
    """The cached prefixes that the rows of a batch continue.

    Attributes:
        store: keys and values; one row if all rows continue the same prefix.
        position: position of every column in every row, `(B or 1, W)`; negative if the column is not part of the row.
            Rows end at the last column.
    """

    store: Store
    position: Tensor

    @staticmethod
    def none(rows: int = 1) -> Past:
        """Empty prefixes."""
        return Past(Store(), torch.zeros(rows, 0, dtype=torch.long))

    @property
    def depth(self) -> Tensor:
        """Length of every row's prefix in tokens, `(B or 1,)`."""
        return (self.position >= 0).sum(1)


def packed(parts: Sequence[tuple[Store, Sequence[tuple[int, int, int]]]], room: int) -> Store:
    """Pack rows of several stores into one, all ending at the same column, with `room` free columns after it.

    Args:
        parts: stores, each with pieces `(row, first, last)` to take from it: columns `first:last` of that row
            become a row of the result.
        room: free columns for tokens to be appended.

    Returns:
        A store `width = max(last - first)` columns long; a shorter row is padded with zeros on the left.
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
    """Whether an adapter puts learned tokens before every row: only its own forward handles them."""
    tuned: Any = getattr(model.module, "active_peft_config", None)
    return bool(getattr(tuned, "is_prompt_learning", False) or getattr(tuned, "is_adaption_prompt", False))


def fixed_positions(config: Any) -> bool:
    """Whether a token's rotation depends on its position only, not on the longest row of the batch."""
    return not any(kind in str(getattr(config, "rope_parameters", "")) for kind in ("dynamic", "longrope"))


def common(rows: Sequence[Sequence[int]]) -> int:
    """Return the length of the rows' common prefix, without the last token of any row."""
    if len(rows) < 2:
        return 0
    shortest = min(map(len, rows))
    count = next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), shortest)
    return max(0, min(count, shortest - 1))


def prefill(model: Model, ids: Sequence[int]) -> Store:
    """Run one row of tokens and return its keys and values."""
    store = Store()
    extend(model, store, [ids])
    return store


def expand(store: Store, n: int, room: int = 0) -> Store:
    """Repeat each row `n` times, row-major, with `room` free columns."""
    rows = store.layers[0].keys.shape[0]
    index = torch.arange(rows, device=store.layers[0].keys.device).repeat_interleave(n)
    return store.select(index, room)


def extend(model: Model, store: Store, rows: Sequence[Sequence[int]], position: Tensor | None = None) -> Tensor:
    """Run one non-empty row of tokens after each row of a store; returns the logits after its last token, `(B, V)`.

    The store (empty, or with as many rows) is extended in place. Rows are padded on the right, which causal attention
    never sees; with their own last token, since transformers warns about pad tokens without a mask.

    Args:
        model: of a type in `PROVEN`.
        store: keys and values of earlier tokens.
        rows: new tokens.
        position: positions of the store's columns, if its rows differ in length (see `Past`).
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
    # The head is run only at columns where a row ends.
    ends, end_index = (lengths - 1).unique(return_inverse=True)
    logits = step(model, store, ids, first + columns, mask, keep=ends)
    if logits.shape[1] == width:
        end_index = lengths - 1
    return logits[torch.arange(len(rows), device=model.device), end_index]


def step(
    model: Model, store: Store, ids: Tensor, positions: Tensor, mask: Tensor | None = None, keep: Tensor | int = 1
) -> Tensor:
    """Run the model on tokens `(B, T)` from a store; logits at the columns `keep`, if its forward can select them.

    Args:
        model: of a type in `PROVEN`.
        store: keys and values of earlier tokens; these tokens' are appended.
        ids: tokens `(B, T)`.
        positions: their positions `(1 or B, T)`.
        mask: False at padding among the store's and these columns, `(B, past + T)`; None if there is none.
        keep: columns `(k,)` whose logits are returned, or how many at the end.
    """
    options: dict[str, Any] = {"logits_to_keep": keep} if "logits_to_keep" in forward_arguments(model.module) else {}
    if "position_ids" in forward_arguments(model.module):
        options["position_ids"] = positions.expand(len(ids), -1)
    return model.module(input_ids=ids, attention_mask=mask, past_key_values=store, use_cache=True, **options).logits


def inner_of(model: Model) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the module itself."""
    return _inner(model.module)


def forward_arguments(module: Any) -> Collection[str]:
    """Return the names of the arguments that the forward of the (unwrapped) transformers model accepts."""
    return inspect.signature(type(_inner(module)).forward).parameters


def _inner(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module
