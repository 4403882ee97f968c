"""Labelled data sets whose classes are Gaussian clouds around prototypes of equal norm.

With equal clouds, the nearest prototype is the Bayes classifier, and the nearest class mean its plug-in estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from didact.types import Example


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """Rows `x = p_class + noise` with `|p| = norm`; every seed has its own prototypes.

    Args:
        classes: C, number of classes.
        dim: d, dimension of x.
        norm: norm of every prototype.
        noise: standard deviation around it, in every coordinate.
    """

    classes: int = 4
    dim: int = 16
    norm: float = 4.0
    noise: float = 1.0

    def __call__(self, seed: int | Sequence[int], rows: int, name: str = "prototypes") -> Example:
        """A data set with `rows` rows of every class, as a user-facing record."""
        rng = np.random.default_rng(seed)
        p = rng.standard_normal((self.classes, self.dim))
        p *= self.norm / np.linalg.norm(p, axis=1, keepdims=True)
        y = np.repeat(np.arange(self.classes), rows)
        x = p[y] + self.noise * rng.standard_normal((len(y), self.dim))
        return Example(x=x.round(4).tolist(), y=[f"class {c}" for c in y], task=name)
