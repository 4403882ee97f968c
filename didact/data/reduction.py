"""Centre and scale rows of numbers, and reduce them to their principal components."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Reduction(NamedTuple):
    """`z = (x - mean) basis`, with `mean (d,)` and `basis (d, k)`."""

    mean: Array
    basis: Array

    def __call__(self, x: Array) -> Array:
        """Rows `(n, d)` as `(n, k)`."""
        out: Array = (x - self.mean) @ self.basis
        return out


def fitted(x: Array, most: int, whiten: bool = False) -> Reduction:
    """Fit a reduction: columns scaled to variance 1, or at most `most` components, fewer if the rows span fewer.

    Args:
        x: rows `(n, d)` to fit to, without held-out rows.
        most: largest k. Tables with no more columns keep them, each scaled by itself.
        whiten: every component gets variance 1 (hidden states of language models have a few giant directions), also
            if there are few; else components of the scaled columns keep their proportions, with mean variance 1.
    """
    mean, std = x.mean(0), x.std(0)
    scale = 1 / np.where(std > 1e-12 * max(1.0, float(np.abs(x).max())), std, 1.0)
    if not whiten and x.shape[1] <= most:
        return Reduction(mean, np.diag(scale))
    scale = np.ones_like(scale) if whiten else scale
    _, values, directions = np.linalg.svd((x - mean) * scale, full_matrices=False)
    keep = min(most, int((values > 1e-6 * values[0]).sum())) or 1
    size = values[:keep] / np.sqrt(len(x))
    stretch = 1 / size if whiten else np.full(keep, 1 / np.sqrt((size**2).mean()))
    return Reduction(mean, scale[:, None] * directions[:keep].T * stretch)
