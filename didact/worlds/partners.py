"""Text whose words have habitual partners, from which a document may depart: what weights know against the context.

A document names a few pairs again and again. Each first word has a partner that it mostly comes with; in some
documents it has another, throughout. Whoever reads a pair for the second time knows the partner from the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from didact.types import Text


@dataclass(frozen=True, kw_only=True)
class Partners:
    """The words and their habits.

    Args:
        words: first words, and as many partners.
        zipf: exponent of the first words' frequencies.
        habit: how often a document keeps to the habitual partner.
        named: different pairs of a document.
        length: pairs of a document, in all.
    """

    words: int = 40
    zipf: float = 1.0
    habit: float = 0.7
    named: int = 4
    length: int = 24

    def documents(self, seed: int | Sequence[int], count: int) -> list[Text]:
        """Documents, independent of each other; the habits are the same for every seed."""
        rng = np.random.default_rng(seed)
        mass = np.arange(1, self.words + 1, dtype=float) ** -self.zipf
        out = []
        for _ in range(count):
            first = rng.choice(self.words, self.named, replace=False, p=mass / mass.sum())
            second = np.where(rng.random(self.named) < self.habit, first, rng.integers(self.words, size=self.named))
            order = rng.integers(self.named, size=self.length)
            out.append(Text(text=" ".join(f"f{first[i]} s{second[i]}" for i in order)))
        return out
