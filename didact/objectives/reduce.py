"""Reduce values per label token to sums and means per record, with `index_add`: independent of padding and packing."""

from __future__ import annotations

import torch
from torch import Tensor


def row_sum(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum per record: `(N,), (N,) -> (rows,)`."""
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, row, values)


def row_count(row: Tensor, rows: int) -> Tensor:
    """Label tokens per record, `(rows,)`, as floats."""
    return torch.bincount(row, minlength=rows).to(torch.get_default_dtype())


def row_mean(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Mean per record; a record without label tokens gives 0."""
    return row_sum(values, row, rows) / row_count(row, rows).clamp(min=1).to(values.dtype)


def masked_row_mean(values: Tensor, mask: Tensor, row: Tensor, rows: int) -> Tensor:
    """Mean per record over the tokens whose mask `(N,)` is 1; a record without any gives 0."""
    return row_sum(mask * values, row, rows) / row_sum(mask, row, rows).clamp(min=1e-10)
