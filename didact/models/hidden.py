"""Hidden states of a frozen model, computed in one pass and streamed to disk: the inputs of probes.

Layer 0 is the embeddings, layer l the output of block l, the last as the head reads it (after the final norm). A
`Store` keeps vectors in one file per layer; small files are memory-mapped, large ones read row by row, so that a
million vectors 4,096 wide take no more memory than a few batches.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact import files, progress
from didact.data.streams import by_length, padded
from didact.models import forward, prefix
from didact.models.model import Model
from didact.types import UserError

MAPPED = 256 << 20  # largest layer file, in bytes, that is memory-mapped: the kernel reads far more than is asked for
NUMPY = {"float32": np.float32, "bfloat16": np.int16}  # numpy has no bfloat16: the same two bytes as int16
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Units = Sequence[Sequence[int]]
"""The vectors kept of one row: for each, the token positions that it is the mean of."""


@dataclass(frozen=True)
class Store:
    """`count` vectors of each of `layers`, with the respective `widths`, in a folder."""

    folder: Path
    layers: tuple[int, ...]
    count: int
    widths: tuple[int, ...]
    dtype: str = "float32"
    keeps: Any = field(default=None, compare=False, repr=False)  # a temporary folder lives as long as its store

    @classmethod
    def create(cls, folder: str | Path | None, widths: Mapping[int, int], count: int, dtype: str = "float32") -> Store:
        """Create an empty store for layers `{layer: width}`, which `put` fills; in a temporary folder by default."""
        temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="didact-hidden-")
        path = Path(folder if folder is not None else temporary.name)  # type: ignore[union-attr]
        path.mkdir(parents=True, exist_ok=True)
        store = cls(path, tuple(widths), count, tuple(widths.values()), dtype, temporary)
        for layer, width in widths.items():
            with open(store.file(layer), "wb") as handle:
                handle.truncate(max(1, count * width * np.dtype(NUMPY[dtype]).itemsize))
        fields = {"layers": store.layers, "count": count, "widths": store.widths, "dtype": dtype}
        files.write_json(path / "store.json", fields)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a store that was written before."""
        fields = files.read_json(Path(folder) / "store.json")
        return cls(Path(folder), tuple(fields["layers"]), fields["count"], tuple(fields["widths"]), fields["dtype"])

    def file(self, layer: int) -> Path:
        """Return the path of a layer's vectors: raw numbers, row after row."""
        return self.folder / f"layer-{layer}.bin"

    def put(self, layer: int, start: int, vectors: Tensor) -> None:
        """Write vectors `(n, d)` from index `start` on."""
        raw = vectors.detach().to("cpu", TORCH[self.dtype]).contiguous()
        view = raw.view(torch.int16) if self.dtype == "bfloat16" else raw
        self._files[layer].put(start, view.numpy())

    def take(self, index: Tensor | Sequence[int], layers: int | Sequence[int]) -> Tensor:
        """Read vectors `(n, d)` at these indices in float32, of one layer or the mean over several."""
        if not isinstance(layers, int):
            return sum((self.take(index, layer) for layer in layers), torch.zeros(())) / len(layers)
        raw = torch.from_numpy(self._files[layers].take(np.asarray(index)))
        return raw.view(torch.bfloat16).float() if self.dtype == "bfloat16" else raw

    @functools.cached_property
    def _files(self) -> dict[int, _File]:
        widths = zip(self.layers, self.widths, strict=True)
        return {layer: _File(self.file(layer), (self.count, width), NUMPY[self.dtype]) for layer, width in widths}


class _File:
    """Vectors in a file: a small one is memory-mapped; a large one is read row by row, the rest stays on disk."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: Any) -> None:
        self.handle = open(path, "r+b", buffering=0)  # noqa: SIM115  (as long as this object)
        self.width, self.dtype = shape[1], np.dtype(dtype)
        self.row = self.width * self.dtype.itemsize
        small = 0 < shape[0] * self.row <= MAPPED
        self.array = np.memmap(path, dtype, "r", shape=shape) if small else None

    def put(self, start: int, rows: np.ndarray) -> None:
        """Write rows from index `start` on."""
        self.handle.seek(start * self.row)
        unwritten = memoryview(rows.tobytes())
        while unwritten:
            unwritten = unwritten[self.handle.write(unwritten) :]

    def take(self, index: np.ndarray) -> np.ndarray:
        """Read the rows at these indices."""
        if self.array is not None:
            return np.asarray(self.array[index])
        out = np.empty((len(index), self.width), self.dtype)
        for line, number in zip(out, index.tolist(), strict=True):
            if os.preadv(self.handle.fileno(), [line], number * self.row) != self.row:
                raise OSError(f"{self.handle.name}: ends before vector {number}")
        return out


def record(
    model: Model,
    rows: Sequence[Sequence[int]],
    units: Sequence[Units] | None = None,
    layers: Sequence[int] | None = None,
    folder: str | Path | None = None,
    dtype: str = "float32",
) -> Store:
    """Store hidden states of token rows, in one pass; vectors are in row order, within a row in that of its `units`.

    Args:
        model: causal, or an encoder; of a seq2seq model the encoder is run.
        rows: token ids, which must fit the model's context.
        units: for each row its vectors, each the mean over some token positions; every token by default.
        layers: layers to store; all by default. Negative ones count from the last.
        folder: where they are written; a temporary one by default.
        dtype: float32 or bfloat16, on disk.

    Raises:
        UserError: the model returns no hidden states, has no such layer, or a row is too long or empty.
    """
    if bad := next((n for n, row in enumerate(rows, 1) if not 0 < len(row) <= model.context), None):
        raise UserError(f"record {bad}: {len(rows[bad - 1])} tokens; the model takes 1 to {model.context}")
    row_units = [[(i,) for i in range(len(row))] for row in rows] if units is None else units
    starts = np.concatenate([[0], np.cumsum([len(vectors) for vectors in row_units])]).astype(int)
    store: Store | None = None
    for group, states in batches(model, rows):
        if store is None:
            widths = {layer: states[layer].shape[-1] for layer in _layer_numbers(layers, len(states))}
            store = Store.create(folder, widths, int(starts[-1]), dtype)
        for layer in store.layers:
            for line, i in enumerate(group):
                store.put(layer, int(starts[i]), pooled(states[layer][line], row_units[i]))
    if store is None:
        raise UserError("no rows to compute hidden states of")
    return store


def pooled(states: Tensor, units: Units) -> Tensor:
    """Return the mean of `states (T, d)` over the positions of every unit, `(len(units), d)`."""
    sizes = torch.tensor([len(unit) for unit in units], device=states.device)
    flat = torch.tensor([i for unit in units for i in unit], dtype=torch.long, device=states.device)
    if len(flat) == len(units):
        return states[flat]
    owner = torch.arange(len(units), device=states.device).repeat_interleave(sizes)
    sums = torch.zeros(len(units), states.shape[-1], device=states.device).index_add_(0, owner, states[flat].float())
    return sums / sizes[:, None]


@torch.no_grad()
def batches(model: Model, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
    """Yield hidden states of rows in padded batches, `(row indices, (B, T, d) of every layer)`, without gradient.

    Raises:
        UserError: the model returns none.
    """
    body = body_of(model)
    was_training = model.module.training
    model.module.eval()
    try:
        with progress.Counted("reading", len(rows)) as bar:
            for group in by_length([len(row) for row in rows], 2 * forward.at_once(model)):
                ids = padded([rows[i] for i in group], model.pad if model.processor is not None else 0)
                mask = padded([[1] * len(rows[i]) for i in group], 0)
                output = body(
                    input_ids=ids.to(model.device), attention_mask=mask.to(model.device), output_hidden_states=True
                )
                yield group, output.hidden_states
                bar.advance(len(group))
    finally:
        model.module.train(was_training)


def body_of(model: Model) -> Any:
    """Return the part of a model that returns hidden states: the model without its head; of a seq2seq one the encoder.

    Raises:
        UserError: it is not a transformers model.
    """
    inner: Any = prefix.inner_of(model)
    if model.kind == "seq2seq" and hasattr(inner, "get_encoder"):
        return inner.get_encoder()
    if not hasattr(inner, "base_model"):
        raise UserError(f"{type(inner).__name__}: gives no hidden states; a transformers model does")
    return inner.base_model


def _layer_numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    if bad := next((layer for layer in layers if not -count <= layer < count), None):
        raise UserError(f"layers: {bad}: the model has 0 (embeddings) to {count - 1}")
    return sorted({layer % count for layer in layers})
