"""Sources mixed by weight, in an order that is the same every time and never far from the weights.

Source: Smith et al. 2022, arXiv:2201.11990, section 3.3, and its code's order of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from didact.types import UserError

MOST_EPOCHS = 4  # times a source is seen before more of it is worth little (Muennighoff et al. 2023, arXiv:2305.16264)


class Blend:
    """Which source comes next: the one furthest behind its share, `argmax_d w_d max(n, 1) - n_d`, the first of equals.

    n counts what was taken so far, of all sources and of each: samples, or tokens where they differ in size.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        if not all(0 <= w < math.inf for w in weights) or not total > 0:
            raise UserError(f"weights {', '.join(map(str, weights))}: give numbers from 0 on, not all 0")
        self.weights = [w / total for w in weights]
        self.taken = [0.0] * len(weights)

    def next(self, among: Sequence[int] | None = None) -> int:
        """The number of a source, of those still there."""
        seen = max(sum(self.taken), 1)
        left = [i for i in (range(len(self.weights)) if among is None else among) if self.weights[i] > 0]
        return max(left, key=lambda d: (self.weights[d] * seen - self.taken[d], -d))

    def took(self, source: int, size: float = 1) -> None:
        """Count what was taken of it."""
        self.taken[source] += size


def order(weights: Sequence[float], count: int) -> Iterator[int]:
    """The sources of so many samples of one size."""
    blend = Blend(weights)
    for _ in range(count):
        source = blend.next()
        blend.took(source)
        yield source


def epochs(sizes: Mapping[str, float], taken: Mapping[str, float]) -> dict[str, float]:
    """How often each source is gone through: what is taken of it over what there is."""
    return {name: taken[name] / size if size else 0.0 for name, size in sizes.items()}
