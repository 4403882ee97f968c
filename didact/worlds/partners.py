"""Text whose words have habitual partners that a document may override: knowledge in weights against the context.

A document repeats a few word pairs. Each first word has a habitual partner; in some documents it has another one,
throughout. When a pair occurs again, its partner is known from the first occurrence.
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
        words: number of first words, and of partners.
        zipf: exponent of the first words' frequencies.
        habit: probability that a document keeps a word's habitual partner.
        named: different pairs in a document.
        length: all pairs in a document.
    """

    words: int = 40
    zipf: float = 1.0
    habit: float = 0.7
    named: int = 4
    length: int = 24

    def documents(self, seed: int | Sequence[int], count: int) -> list[Text]:
        """Independent documents; the habits are the same for every seed."""
        rng = np.random.default_rng(seed)
        weights = np.arange(1, self.words + 1, dtype=float) ** -self.zipf
        texts = []
        for _ in range(count):
            first = rng.choice(self.words, self.named, replace=False, p=weights / weights.sum())
            second = np.where(rng.random(self.named) < self.habit, first, rng.integers(self.words, size=self.named))
            order = rng.integers(self.named, size=self.length)
            texts.append(Text(text=" ".join(f"f{first[i]} s{second[i]}" for i in order)))
        return texts
