"""Sentences in which a word's part of speech is told by its place, and can also be learnt by heart.

Nouns and adjectives stand beside `is`, in either order, and then one of the two is asked for:

    is ADJ NOUN : ADJ   ->  ADJ ADJ ADJ          NOUN is ADJ : NOUN   ->  ADJ NOUN NOUN

Whoever answers must know which of the two is the adjective: from its place after `is`, or from what it always was.
Words of a class are drawn by Zipf's law. Some of each tenth by frequency are ambiguous: half of the time one of the
other class stands in their place, so that they occur as both.

Source: Anand et al. 2024, arXiv:2406.00053; truth table and sampling as its card has them.
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
Pair = tuple[str, str]  # adjective and noun, as they stand in the sentence


@dataclass(frozen=True, kw_only=True)
class PartsOfSpeech:
    """A vocabulary with its frequencies.

    Args:
        words: half of them nouns, half adjectives.
        unseen: words that no training sentence has.
        zipf: exponent of the frequencies, rank^-zipf; 0 is uniform.
        ambiguous: share of the words of each tenth that occur as both.
    """

    words: int = 200
    unseen: int = 20
    zipf: float = 1.0
    ambiguous: float = 0.1

    @cached_property
    def frequencies(self) -> NDArray[np.float64]:
        """Of the words of one class, by rank."""
        mass = np.arange(1, self.words // 2 + 1, dtype=float) ** -self.zipf
        return mass / mass.sum()

    @cached_property
    def both(self) -> NDArray[np.bool_]:
        """Which ranks are ambiguous: the last ones of every tenth."""
        size = self.words // 2
        tenth = np.arange(size) * 10 // size
        place = np.array([np.sum(tenth[i + 1 :] == tenth[i]) for i in range(size)])
        return place < np.round(self.ambiguous * np.bincount(tenth, minlength=10))[tenth]

    def sentences(self, seed: int | Sequence[int], count: int) -> list[Demo]:
        """Training sentences: the prompt is what is shown and asked, the completion the answer."""
        rng = np.random.default_rng(seed)
        return [_sentence(rng, self._pair(rng), "seen") for _ in range(count)]

    def battery(self, seed: int | Sequence[int], count: int) -> list[Demo]:
        """`count` sentences of every set, named by `task`.

        seen: as training; tail: of the rarest tenth; conflict and conflict_tail: each word in the other class's place,
        with what the weights would say as `alternate`; unseen: of words without training; ambiguous and plain: words
        that occur as both, and as one.
        """
        rng = np.random.default_rng(seed)
        size = self.words // 2
        last = np.arange(size - max(2, size // 10), size)
        drawn: dict[str, Callable[[], Pair]] = {
            "seen": lambda: self._pair(rng),
            "tail": lambda: _named(rng.choice(last), rng.choice(last)),
            "conflict": lambda: _swapped(_named(*rng.choice(size, 2, p=self.frequencies))),
            "conflict_tail": lambda: _swapped(_named(rng.choice(last), rng.choice(last))),
            "unseen": lambda: _pair_of([f"u{i}" for i in rng.choice(self.unseen, 2, replace=False)]),
            "ambiguous": lambda: _named(*rng.choice(np.flatnonzero(self.both), 2)),
            "plain": lambda: _named(*rng.choice(np.flatnonzero(~self.both), 2)),
        }
        if not self.both.any():
            del drawn["ambiguous"]
        return [_sentence(rng, pair(), task) for task, pair in drawn.items() for _ in range(count)]

    def _pair(self, rng: np.random.Generator) -> Pair:
        """An adjective and a noun, either of which may be an ambiguous word of the other class."""
        while True:
            ranks = rng.choice(self.words // 2, 2, p=self.frequencies)
            others = np.flatnonzero(self.both)
            found = [
                f"{other}{rng.choice(others)}" if self.both[rank] and rng.random() < 0.5 else f"{own}{rank}"
                for rank, own, other in zip(ranks, "an", "na", strict=True)
            ]
            if found[0] != found[1]:
                return found[0], found[1]


def answer(adjective: str, asked: str) -> str:
    """Three words: the adjective, and twice what was asked for."""
    return f"{adjective} {asked} {asked}"


def _sentence(rng: np.random.Generator, pair: Pair, task: str) -> Demo:
    adjective, noun = pair
    shown = f"{COPULA} {adjective} {noun}" if rng.random() < 0.5 else f"{noun} {COPULA} {adjective}"
    asked = adjective if rng.random() < 0.5 else noun
    otherwise = answer(noun, asked) if task.startswith("conflict") else None
    return Demo(prompt=f"{shown} {asked}", completion=answer(adjective, asked), alternate=otherwise, task=task)


def _named(adjective: int, noun: int) -> Pair:
    return f"a{adjective}", f"n{noun}"


def _swapped(pair: Pair) -> Pair:
    return pair[1], pair[0]


def _pair_of(words: Sequence[str]) -> Pair:
    return words[0], words[1]
