"""Mix sources by weight, in a deterministic order that stays close to the weights throughout.

Source: Smith et al. 2022, arXiv:2201.11990, section 3.3, and its code's order of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from didact.types import UserError

MOST_EPOCHS = 4  # passes over a source after which more bring little (Muennighoff et al. 2023, arXiv:2305.16264)


class Blend:
    """Chooses the next source: the one furthest behind its share, `argmax_d w_d max(n, 1) - n_d`, ties to the first.

    n counts what was taken so far, in all and from each source: samples, or tokens where samples differ in size.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        if not all(0 <= w < math.inf for w in weights) or not total > 0:
            raise UserError(f"weights {', '.join(map(str, weights))}: give non-negative numbers, not all 0")
        self.weights = [w / total for w in weights]
        self.taken = [0.0] * len(weights)

    def next(self, among: Sequence[int] | None = None) -> int:
        """Return the index of the next source, of those in `among`."""
        total = max(sum(self.taken), 1)
        available = [i for i in (range(len(self.weights)) if among is None else among) if self.weights[i] > 0]
        return max(available, key=lambda d: (self.weights[d] * total - self.taken[d], -d))

    def count_taken(self, source: int, size: float = 1) -> None:
        """Count `size` as taken from a source."""
        self.taken[source] += size


def order(weights: Sequence[float], count: int) -> Iterator[int]:
    """Yield the source of each of `count` samples of equal size."""
    blend = Blend(weights)
    for _ in range(count):
        source = blend.next()
        blend.count_taken(source)
        yield source


def epochs(sizes: Mapping[str, float], taken: Mapping[str, float]) -> dict[str, float]:
    """Epochs over each source: amount taken over amount available."""
    return {name: taken[name] / size if size else 0.0 for name, size in sizes.items()}
