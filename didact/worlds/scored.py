"""Answers whose score is known: every letter of an answer is worth something at its place, more under some prompts.

A prompt is a capital, an answer some small letters. The worth of an answer is the sum over its places, standardised
over all answers of that prompt to z; its score is `5 + 1.7 z` rounded to 1 ... 10, so that almost all answers drawn at
random score 3 to 7 and about one in fifty 9 or 10.
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
        prompts: at most 16.
        letters: at most 10.
        length: of an answer.
        own: how much of a letter's worth depends on the prompt, beside 1 that does not.
        seed: of the worths.
    """

    prompts: int = 16
    letters: int = 6
    length: int = 4
    own: float = 0.5
    seed: int = 0

    @functools.cached_property
    def worths(self) -> Any:
        """Of a letter at a place under a prompt, `(prompts, length, letters)`."""
        draw = np.random.default_rng([self.seed, 51])
        shared = draw.standard_normal((1, self.length, self.letters))
        worths = shared + self.own * draw.standard_normal((self.prompts, self.length, self.letters))
        worths -= worths.mean(-1, keepdims=True)
        return worths / np.sqrt(worths.var(-1).sum(-1))[:, None, None]

    def score(self, prompt: str, answer: str) -> int | None:
        """1 to 10, or None of what is no answer."""
        text = answer.strip()
        if len(text) != self.length or not set(text) <= set(LETTERS[: self.letters]):
            return None
        z = sum(self.worths[PROMPTS.index(prompt), i, LETTERS.index(x)] for i, x in enumerate(text))
        return int(min(10, max(1, round(MIDDLE + SPREAD * z))))

    def answers(self) -> list[str]:
        """All there are."""
        return ["".join(a) for a in itertools.product(LETTERS[: self.letters], repeat=self.length)]

    def drawn(self, draw: np.random.Generator) -> str:
        """An answer at random."""
        return "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.length))

    def demos(self, seed: int, n: int) -> list[Demo]:
        """What is answered at random; `extra["score"]` says how good it is."""
        draw = np.random.default_rng([self.seed, seed, 52])
        out = []
        for _ in range(n):
            prompt, answer = PROMPTS[draw.integers(self.prompts)], self.drawn(draw)
            out.append(Demo(prompt=prompt, completion=answer, extra={"score": self.score(prompt, answer)}))
        return out

    def pairs(self, seed: int, n: int, near: float = 0.5, ties: float = 0.0) -> list[Preference]:
        """Scored pairs of answers at random; a share is `near`, one apart, and a share are `ties`."""
        draw = np.random.default_rng([self.seed, seed, 53])
        out: list[Preference] = []
        wanted = draw.random(n)
        while len(out) < n:
            share = wanted[len(out)]
            prompt = PROMPTS[draw.integers(self.prompts)]
            a, b = self.drawn(draw), self.drawn(draw)
            first, second = self.score(prompt, a), self.score(prompt, b)
            assert first is not None and second is not None
            apart = abs(first - second)
            fits = apart == (0 if share < ties else 1) if share < ties + near else apart > 1
            if not fits or a == b:
                continue
            if first < second:
                a, b, first, second = b, a, second, first
            out.append(Preference(prompt=prompt, chosen=a, rejected=b, chosen_score=first, rejected_score=second))
        return out
