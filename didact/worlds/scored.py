"""Answers with a known score: each letter of an answer has a value that depends on its position and on the prompt.

A prompt is a capital, an answer some small letters. The value of an answer is the sum over its positions, standardised
over all answers to that prompt to z; its score is `5 + 1.7 z` rounded to 1 ... 10, so that almost all random answers
score 3 to 7 and about one in fifty 9 or 10.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.types import Demo, Preference

LETTERS = "abcdefghij"
PROMPTS = "ABCDEFGHIJKLMNOP"
MIDDLE, SPREAD = 5.0, 1.7


@dataclass(frozen=True)
class Scored:
    """The world.

    Args:
        prompts: number of prompts, at most 16.
        letters: size of the alphabet, at most 10.
        length: letters in an answer.
        own: standard deviation of the prompt-specific part of a letter's value; that of the shared part is 1.
        seed: of the values and of all sampling.
    """

    prompts: int = 16
    letters: int = 6
    length: int = 4
    own: float = 0.5
    seed: int = 0

    @functools.cached_property
    def worths(self) -> Any:
        """The value of each letter at each position under each prompt, `(prompts, length, letters)`."""
        draw = np.random.default_rng([self.seed, 51])
        shared = draw.standard_normal((1, self.length, self.letters))
        worths = shared + self.own * draw.standard_normal((self.prompts, self.length, self.letters))
        worths -= worths.mean(-1, keepdims=True)
        return worths / np.sqrt(worths.var(-1).sum(-1))[:, None, None]

    def score(self, prompt: str, answer: str) -> int | None:
        """The score, 1 to 10; None if `answer` is malformed."""
        text = answer.strip()
        if len(text) != self.length or not set(text) <= set(LETTERS[: self.letters]):
            return None
        z = sum(self.worths[PROMPTS.index(prompt), i, LETTERS.index(x)] for i, x in enumerate(text))
        return int(min(10, max(1, round(MIDDLE + SPREAD * z))))

    def answers(self) -> list[str]:
        """All well-formed answers."""
        return ["".join(a) for a in itertools.product(LETTERS[: self.letters], repeat=self.length)]

    def drawn(self, draw: np.random.Generator) -> str:
        """A random answer."""
        return "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.length))

    def demos(self, seed: int, n: int) -> list[Demo]:
        """Prompts with random answers; `extra["score"]` is the score."""
        draw = np.random.default_rng([self.seed, seed, 52])
        demos = []
        for _ in range(n):
            prompt, answer = PROMPTS[draw.integers(self.prompts)], self.drawn(draw)
            demos.append(Demo(prompt=prompt, completion=answer, extra={"score": self.score(prompt, answer)}))
        return demos

    def pairs(self, seed: int, n: int, near: float = 0.5, ties: float = 0.0) -> list[Preference]:
        """Scored pairs of random answers: a share `near` has scores that differ by 1, a share `ties` has equal ones."""
        draw = np.random.default_rng([self.seed, seed, 53])
        pairs: list[Preference] = []
        kinds = draw.random(n)
        while len(pairs) < n:
            kind = kinds[len(pairs)]
            prompt = PROMPTS[draw.integers(self.prompts)]
            a, b = self.drawn(draw), self.drawn(draw)
            first, second = self.score(prompt, a), self.score(prompt, b)
            assert first is not None and second is not None
            gap = abs(first - second)
            fits = gap == (0 if kind < ties else 1) if kind < ties + near else gap > 1
            if not fits or a == b:
                continue
            if first < second:
                a, b, first, second = b, a, second, first
            pairs.append(Preference(prompt=prompt, chosen=a, rejected=b, chosen_score=first, rejected_score=second))
        return pairs
