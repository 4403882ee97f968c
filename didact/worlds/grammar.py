"""A grammar with a known distribution: the class of a prompt determines which letters may follow which.

A prompt is a class and some letters, `B kdae`; its answer continues the letters, a second-order Markov chain that ends
after 8 to 12 letters. In a class, only `follow` letters may come after each letter; the letter before that one
determines their probabilities. A spoiled answer has some of its letters replaced by marks that occur in no good
answer; otherwise it looks like a good one.
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
        classes: number of classes, at most 8.
        letters: size of the alphabet, at most 23.
        follow: number of letters that may come after a letter.
        given: letters in the prompt.
        shortest: fewest letters in an answer.
        longest: most letters in an answer; all lengths are equally likely.
        marks: number of letters replaced in a spoiled answer.
        seed: of the chains and of all sampling.
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
        for class_ in range(self.classes):
            for letter in range(n):
                successors = draw.permutation(n)[: self.follow]
                p[class_, :, letter, successors] = draw.dirichlet(np.ones(self.follow), size=n).T
        return p

    def prompt(self, draw: np.random.Generator) -> str:
        """A random class and random letters."""
        letters = "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.given))
        return f"{CLASSES[draw.integers(self.classes)]} {letters}"

    def answer(self, draw: np.random.Generator, prompt: str) -> str:
        """Sample a good answer to a prompt."""
        table = self.chain[CLASSES.index(prompt[0])]
        a, b = (LETTERS.index(x) for x in prompt[-2:])
        out = ""
        for _ in range(draw.integers(self.shortest, self.longest + 1)):
            a, b = b, int(draw.choice(self.letters, p=table[a, b]))
            out += LETTERS[b]
        return out

    def demos(self, seed: int, n: int, spoiled: float = 0.0) -> list[Demo]:
        """Prompts with answers, of which a share is spoiled (`extra["spoiled"]`)."""
        draw = np.random.default_rng([self.seed, seed, 92])
        demos = []
        for _ in range(n):
            prompt = self.prompt(draw)
            text, is_spoiled = self.answer(draw, prompt), bool(draw.random() < spoiled)
            if is_spoiled:
                text = self.spoil(draw, text)
            demos.append(Demo(prompt=prompt, completion=text, extra={"spoiled": is_spoiled}))
        return demos

    def spoil(self, draw: np.random.Generator, text: str) -> str:
        """Replace some letters of an answer by marks."""
        letters = list(text)
        for i in draw.permutation(len(text))[: self.marks]:
            letters[i] = MARKS[draw.integers(len(MARKS))]
        return "".join(letters)

    def valid(self, prompt: str, completion: str) -> bool:
        """Whether the grammar can generate this answer."""
        return self.logp(prompt, completion) > -math.inf

    def follows(self, prompt: str, before: str, letter: str) -> bool:
        """Whether a letter may come after another under this prompt's class."""
        letters = LETTERS[: self.letters]
        if before not in letters or letter not in letters:
            return False
        return bool(self.chain[CLASSES.index(prompt[0]), :, letters.index(before), letters.index(letter)].any())

    def logp(self, prompt: str, completion: str) -> float:
        """Log-prob of a good answer in nats, including that of its length."""
        text = completion.strip()
        if not self.shortest <= len(text) <= self.longest or not set(text) <= set(LETTERS[: self.letters]):
            return -math.inf
        table = self.chain[CLASSES.index(prompt[0])]
        a, b = (LETTERS.index(x) for x in prompt[-2:])
        total = -math.log(self.longest - self.shortest + 1)
        for letter in text:
            a, b, p = b, LETTERS.index(letter), table[a, b, LETTERS.index(letter)]
            if p == 0:
                return -math.inf
            total += math.log(p)
        return total

    @staticmethod
    def spoiled(completion: str) -> bool:
        """Whether an answer contains a mark."""
        return bool(set(completion) & set(MARKS))
