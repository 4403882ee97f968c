"""Batch-size ramp-up: batches that grow in steps during a run."""

from __future__ import annotations

import math
from collections.abc import Iterator


def batch(consumed: float, first: int, step: int, full: int, samples: float) -> int:
    """Return the batch size after `consumed` sequences: `first + floor(consumed / per) step`, `full` after `samples`.

    `per = samples / ((full - first) / step)`, so that every size but the full one has the same share of the ramp.
    """
    if consumed > samples or full <= first:
        return full
    return min(full, first + math.floor(consumed / (samples / ((full - first) / step))) * step)


def steps(first: int, step: int, full: int, samples: float, total: float) -> Iterator[tuple[int, int]]:
    """Yield each batch size and its number of steps in a run of `total` sequences, by the rule of `batch`."""
    consumed = 0.0
    while consumed < total:
        size = batch(consumed, first, step, full, samples)
        end = total
        if size < full:
            end = min(total, samples * ((size - first) // step + 1) * step / (full - first))
        count = max(1, math.ceil((end - consumed) / size - 1e-9))
        yield size, count
        consumed += count * size
