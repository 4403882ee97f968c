"""Documents whose lines are good or bad by a rule on pairs of letters, with a known distribution.

A line has a few letters drawn from a Markov chain, `cafd`. It is bad if some letter is followed by the next one of the
alphabet, `cabd`: a third of the lines, with the same letters as the good ones. So a model cannot avoid bad lines by
avoiding letters, as it could if bad lines were defined by a word list.
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
        letters: size of the alphabet, at most 8.
        length: letters in a line.
        step: probability that the next letter of the alphabet follows.
        lines: lines in a document.
        seed: of the chain and of all sampling.
    """

    letters: int = 5
    length: int = 3
    step: float = 0.25
    lines: int = 8
    seed: int = 0

    @functools.cached_property
    def chain(self) -> Any:
        """Probabilities of the first letter (row 0) and of the next letter after each, `(1 + letters, letters)`."""
        p = np.random.default_rng([self.seed, 141]).dirichlet(2 * np.ones(self.letters), size=1 + self.letters)
        for a in range(self.letters - 1):
            p[1 + a, a + 1] = 0.0
            p[1 + a] *= (1 - self.step) / p[1 + a].sum()
            p[1 + a, a + 1] = self.step
        return p

    @functools.cached_property
    def whole(self) -> dict[str, float]:
        """All lines with their probabilities."""
        every = itertools.product(range(self.letters), repeat=self.length)
        return {_line(row): math.exp(self._logp(row)) for row in every}

    @property
    def rate(self) -> float:
        """Probability that a line is bad."""
        return sum(p for line, p in self.whole.items() if bad(line))

    @property
    def entropy(self) -> float:
        """Entropy of a good line in nats: the loss of a perfect model on good lines."""
        p = np.array([p for line, p in self.whole.items() if not bad(line)])
        return float(-(p / p.sum() * np.log(p / p.sum())).sum())

    def texts(self, part: int, n: int, good: bool = False) -> list[Text]:
        """`n` documents of one part of the world, each line scored 0 or, if bad, -1; only good lines if `good`."""
        draw = np.random.default_rng([self.seed, 142, part])
        lines = [line for line in self.whole if not (good and bad(line))]
        p = np.array([self.whole[line] for line in lines])
        line_ids = draw.choice(len(lines), size=(n, self.lines), p=p / p.sum())
        documents = [[lines[i] + "\n" for i in row] for row in line_ids]
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
    """For each text, minus the share of its lines that are bad: a scorer of texts, 0 is best."""
    lines = [[line for line in text.split("\n") if line] for text in texts]
    return [-sum(map(bad, text_lines)) / max(1, len(text_lines)) for text_lines in lines]


def _line(row: Sequence[int]) -> str:
    return "".join(LETTERS[x] for x in row)
