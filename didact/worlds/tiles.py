"""Documents whose lines are good or bad by a rule that no single letter shows, with the truth known exactly.

A line has a few letters drawn from a Markov chain, `cafd`. It is bad where a letter is followed by the next one of the
alphabet, `cabd`: a third of the lines, with the same letters as the good ones. So a learner cannot avoid bad lines by
avoiding letters, as it can where badness is a word list.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.types import Segment, Text

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Tiles:
    """The world.

    Args:
        letters: at most 8.
        length: letters of a line.
        step: probability that the next letter of the alphabet follows.
        lines: of a document.
        seed: of the chain.
    """

    letters: int = 5
    length: int = 3
    step: float = 0.25
    lines: int = 8
    seed: int = 0

    @functools.cached_property
    def chain(self) -> Any:
        """Probability of the first letter (row 0) and of the next after each, `(1 + letters, letters)`."""
        p = np.random.default_rng([self.seed, 141]).dirichlet(2 * np.ones(self.letters), size=1 + self.letters)
        for a in range(self.letters - 1):
            p[1 + a, a + 1] = 0.0
            p[1 + a] *= (1 - self.step) / p[1 + a].sum()
            p[1 + a, a + 1] = self.step
        return p

    @functools.cached_property
    def whole(self) -> dict[str, float]:
        """Every line with its probability."""
        every = itertools.product(range(self.letters), repeat=self.length)
        return {_line(row): math.exp(self._logp(row)) for row in every}

    @property
    def rate(self) -> float:
        """Probability that a line is bad."""
        return sum(p for line, p in self.whole.items() if bad(line))

    @property
    def entropy(self) -> float:
        """Of a good line, in nats: what a perfect model's loss on good lines is."""
        good = np.array([p for line, p in self.whole.items() if not bad(line)])
        return float(-(good / good.sum() * np.log(good / good.sum())).sum())

    def texts(self, part: int, n: int, good: bool = False) -> list[Text]:
        """`n` documents of one part of the world, each line scored 0 or, where it is bad, -1; only good lines if so."""
        draw = np.random.default_rng([self.seed, 142, part])
        lines = [line for line in self.whole if not (good and bad(line))]
        p = np.array([self.whole[line] for line in lines])
        picked = draw.choice(len(lines), size=(n, self.lines), p=p / p.sum())
        documents = [[lines[i] + "\n" for i in row] for row in picked]
        return [
            Text(
                text="".join(d), segments=[Segment(text=s, score=score) for s, score in zip(d, rewards(d), strict=True)]
            )
            for d in documents
        ]

    def _logp(self, row: Sequence[int]) -> float:
        return float(sum(math.log(self.chain[a, b]) for a, b in zip((0, *(1 + x for x in row)), row, strict=False)))


def bad(line: str) -> bool:
    """Whether a letter of the line is followed by the next one of the alphabet."""
    return any(a + b in LETTERS for a, b in itertools.pairwise(line))


def rewards(texts: Sequence[str]) -> list[float]:
    """Of each text, minus the share of its lines that are bad: a scorer of texts, 0 is best."""
    lines = [[line for line in text.split("\n") if line] for text in texts]
    return [-sum(map(bad, some)) / max(1, len(some)) for some in lines]


def _line(row: Sequence[int]) -> str:
    return "".join(LETTERS[x] for x in row)
