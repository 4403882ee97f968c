"""A grammar whose text is known exactly: a class word says which letters may follow which.

A prompt is a class and some letters, `B kdae`; its answer goes on from there, a second-order chain that ends after 8
to 12 letters. In a class, each letter has `follow` letters that may come after it and all others never do; the letter
before the last says how likely each of them is. A spoiled answer has some of its letters replaced by marks that no
good answer has; what is left of it looks like a good one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.types import Demo

LETTERS = "abcdefghijklmnopqrstuvw"
CLASSES = "ABCDEFGH"
MARKS = "xyz"


@dataclass(frozen=True)
class Grammar:
    """The world.

    Args:
        classes: at most 8.
        letters: at most 23.
        follow: letters that may come after a letter.
        given: letters of the prompt.
        shortest: letters of an answer.
        longest: and at most; all lengths are equally likely.
        marks: how many letters of a spoiled answer are replaced.
        seed: of the chains.
    """

    classes: int = 8
    letters: int = 16
    follow: int = 4
    given: int = 4
    shortest: int = 8
    longest: int = 12
    marks: int = 1
    seed: int = 0

    @functools.cached_property
    def chain(self) -> Any:
        """Probability of the next letter, `(classes, letter before, letter, next letter)`."""
        draw = np.random.default_rng([self.seed, 91])
        n = self.letters
        p = np.zeros((self.classes, n, n, n))
        for c in range(self.classes):
            for b in range(n):
                after = draw.permutation(n)[: self.follow]
                p[c, :, b, after] = draw.dirichlet(np.ones(self.follow), size=n).T
        return p

    def prompt(self, draw: np.random.Generator) -> str:
        """A class and letters in random order."""
        shown = "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.given))
        return f"{CLASSES[draw.integers(self.classes)]} {shown}"

    def answer(self, draw: np.random.Generator, prompt: str) -> str:
        """A good answer to a prompt."""
        table = self.chain[CLASSES.index(prompt[0])]
        a, b = (LETTERS.index(x) for x in prompt[-2:])
        out = ""
        for _ in range(draw.integers(self.shortest, self.longest + 1)):
            a, b = b, int(draw.choice(self.letters, p=table[a, b]))
            out += LETTERS[b]
        return out

    def demos(self, seed: int, n: int, spoiled: float = 0.0) -> list[Demo]:
        """Prompts with answers, a share of which is spoiled (`extra["spoiled"]`)."""
        draw = np.random.default_rng([self.seed, seed, 92])
        out = []
        for _ in range(n):
            prompt = self.prompt(draw)
            text, bad = self.answer(draw, prompt), bool(draw.random() < spoiled)
            if bad:
                text = self.spoil(draw, text)
            out.append(Demo(prompt=prompt, completion=text, extra={"spoiled": bad}))
        return out

    def spoil(self, draw: np.random.Generator, text: str) -> str:
        """The answer with marks in place of some of its letters."""
        letters = list(text)
        for place in draw.permutation(len(text))[: self.marks]:
            letters[place] = MARKS[draw.integers(len(MARKS))]
        return "".join(letters)

    def valid(self, prompt: str, completion: str) -> bool:
        """Whether the grammar can give this answer."""
        return self.logp(prompt, completion) > -math.inf

    def follows(self, prompt: str, before: str, letter: str) -> bool:
        """Whether a letter may come after another under this prompt's class."""
        known = LETTERS[: self.letters]
        if before not in known or letter not in known:
            return False
        return bool(self.chain[CLASSES.index(prompt[0]), :, known.index(before), known.index(letter)].any())

    def logp(self, prompt: str, completion: str) -> float:
        """Log-prob of a good answer, in nats; its length is part of it."""
        text = completion.strip()
        if not self.shortest <= len(text) <= self.longest or not set(text) <= set(LETTERS[: self.letters]):
            return -math.inf
        table = self.chain[CLASSES.index(prompt[0])]
        a, b = (LETTERS.index(x) for x in prompt[-2:])
        total = -math.log(self.longest - self.shortest + 1)
        for letter in text:
            a, b, c = b, LETTERS.index(letter), table[a, b, LETTERS.index(letter)]
            if c == 0:
                return -math.inf
            total += math.log(c)
        return total

    @staticmethod
    def spoiled(completion: str) -> bool:
        """Whether an answer has a mark."""
        return bool(set(completion) & set(MARKS))
