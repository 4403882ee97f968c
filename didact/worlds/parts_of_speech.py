"""Sentences in which a word's part of speech follows from its position, and can also be memorised.

A noun and an adjective stand next to `is`, in either order, and then one of the two is queried:

    is ADJ NOUN : ADJ   ->  ADJ ADJ ADJ          NOUN is ADJ : NOUN   ->  ADJ NOUN NOUN

To answer, a model must know which of the two is the adjective: from its position after `is` (in context), or from
training (in weights). Words of a class follow Zipf's law. Some of each tenth by frequency are ambiguous: half of the
time an ambiguous word of the other class stands in their place, so that they occur as both.

Source: Anand et al. 2024, arXiv:2406.00053, whose truth table and sampling this follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from didact.types import Demo

COPULA = "is"
SETS = ("seen", "tail", "conflict", "conflict_tail", "unseen", "ambiguous", "plain")
Pair = tuple[str, str]  # adjective and noun by their roles in the sentence


@dataclass(frozen=True, kw_only=True)
class PartsOfSpeech:
    """A vocabulary with its frequencies.

    Args:
        words: number of words, half of them nouns, half adjectives.
        unseen: number of words that occur in no training sentence.
        zipf: exponent of the frequencies, rank^-zipf; 0 is uniform.
        ambiguous: share of the words in each tenth that occur as both.
    """

    words: int = 200
    unseen: int = 20
    zipf: float = 1.0
    ambiguous: float = 0.1

    @cached_property
    def frequencies(self) -> NDArray[np.float64]:
        """Frequencies of the words of one class, by rank."""
        mass = np.arange(1, self.words // 2 + 1, dtype=float) ** -self.zipf
        return mass / mass.sum()

    @cached_property
    def both(self) -> NDArray[np.bool_]:
        """Whether each rank is ambiguous: the last ones of every tenth are."""
        size = self.words // 2
        tenth = np.arange(size) * 10 // size
        from_end = np.array([np.sum(tenth[i + 1 :] == tenth[i]) for i in range(size)])
        return from_end < np.round(self.ambiguous * np.bincount(tenth, minlength=10))[tenth]

    def sentences(self, seed: int | Sequence[int], count: int) -> list[Demo]:
        """Training sentences: the prompt is the sentence and the query, the completion the answer."""
        rng = np.random.default_rng(seed)
        return [_sentence(rng, self._pair(rng), "seen") for _ in range(count)]

    def battery(self, seed: int | Sequence[int], count: int) -> list[Demo]:
        """`count` sentences of every test set; `task` is the name of the set.

        seen: as in training; tail: words of the rarest tenth; conflict and conflict_tail: each word at the other
        class's position, with the answer from weights as `alternate`; unseen: words that occur in no training sentence;
        ambiguous and plain: words that occur as both, and as one.
        """
        rng = np.random.default_rng(seed)
        size = self.words // 2
        rarest = np.arange(size - max(2, size // 10), size)
        samplers: dict[str, Callable[[], Pair]] = {
            "seen": lambda: self._pair(rng),
            "tail": lambda: _words(rng.choice(rarest), rng.choice(rarest)),
            "conflict": lambda: _swapped(_words(*rng.choice(size, 2, p=self.frequencies))),
            "conflict_tail": lambda: _swapped(_words(rng.choice(rarest), rng.choice(rarest))),
            "unseen": lambda: _as_pair([f"u{i}" for i in rng.choice(self.unseen, 2, replace=False)]),
            "ambiguous": lambda: _words(*rng.choice(np.flatnonzero(self.both), 2)),
            "plain": lambda: _words(*rng.choice(np.flatnonzero(~self.both), 2)),
        }
        if not self.both.any():
            del samplers["ambiguous"]
        return [_sentence(rng, sample(), task) for task, sample in samplers.items() for _ in range(count)]

    def _pair(self, rng: np.random.Generator) -> Pair:
        """An adjective and a noun, either of which may be an ambiguous word of the other class."""
        while True:
            ranks = rng.choice(self.words // 2, 2, p=self.frequencies)
            ambiguous = np.flatnonzero(self.both)
            words = [
                f"{other}{rng.choice(ambiguous)}" if self.both[rank] and rng.random() < 0.5 else f"{own}{rank}"
                for rank, own, other in zip(ranks, "an", "na", strict=True)
            ]
            if words[0] != words[1]:
                return words[0], words[1]


def answer(adjective: str, asked: str) -> str:
    """The adjective, then the queried word twice."""
    return f"{adjective} {asked} {asked}"


def _sentence(rng: np.random.Generator, pair: Pair, task: str) -> Demo:
    adjective, noun = pair
    context = f"{COPULA} {adjective} {noun}" if rng.random() < 0.5 else f"{noun} {COPULA} {adjective}"
    query = adjective if rng.random() < 0.5 else noun
    alternate = answer(noun, query) if task.startswith("conflict") else None
    return Demo(prompt=f"{context} {query}", completion=answer(adjective, query), alternate=alternate, task=task)


def _words(adjective: int, noun: int) -> Pair:
    return f"a{adjective}", f"n{noun}"


def _swapped(pair: Pair) -> Pair:
    return pair[1], pair[0]


def _as_pair(words: Sequence[str]) -> Pair:
    return words[0], words[1]
