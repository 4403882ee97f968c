"""Invented languages: the same meanings with different words and word order, so that every translation is known.

    nali mive toro        subject, verb, object; each noun may have an adjective
    toro mive rusa nali

A language has a word for every concept, an order of subject, verb and object, and a position for the adjective.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from didact.types import Parallel, Text

ORDERS = ("SVO", "SOV", "VSO", "VOS", "OVS", "OSV")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class Meaning(NamedTuple):
    """The concepts of a sentence; -1 for a noun without adjective."""

    subject: int
    verb: int
    object: int
    subject_adjective: int = -1
    object_adjective: int = -1


@dataclass(frozen=True)
class Concepts:
    """The number of concepts of each kind; they are numbered nouns first, then verbs, then adjectives."""

    nouns: int = 20
    verbs: int = 10
    adjectives: int = 10

    @property
    def size(self) -> int:
        """The number of all concepts."""
        return self.nouns + self.verbs + self.adjectives

    def kind(self, concept: int) -> str:
        """noun, verb or adjective."""
        return "noun" if concept < self.nouns else "verb" if concept < self.nouns + self.verbs else "adjective"

    def draw(self, rng: np.random.Generator, adjective: float = 0.4) -> Meaning:
        """A random meaning; each noun has an adjective with probability `adjective`."""
        nouns = rng.choice(self.nouns, 2, replace=False)
        verb = self.nouns + rng.integers(self.verbs)
        adjectives = [
            int(self.nouns + self.verbs + rng.integers(self.adjectives)) if rng.random() < adjective else -1
            for _ in nouns
        ]
        return Meaning(int(nouns[0]), int(verb), int(nouns[1]), *adjectives)


@dataclass(frozen=True)
class Tongue:
    """A language."""

    name: str
    words: tuple[str, ...]
    order: str = "SVO"
    adjective_first: bool = True

    def sentence(self, meaning: Meaning) -> str:
        """The sentence for a meaning."""
        return " ".join(self.words[c] for c in self.concepts(meaning))

    def concepts(self, meaning: Meaning) -> list[int]:
        """The concepts of a meaning, in this language's word order."""
        parts = {
            "S": self._noun(meaning.subject, meaning.subject_adjective),
            "V": [meaning.verb],
            "O": self._noun(meaning.object, meaning.object_adjective),
        }
        return [c for place in self.order for c in parts[place]]

    def _noun(self, noun: int, adjective: int) -> list[int]:
        phrase = [noun] if adjective < 0 else [adjective, noun]
        return phrase if self.adjective_first else phrase[::-1]

    def rules(self) -> str:
        """The grammar in words, as a grammar book states it."""
        place = "before" if self.adjective_first else "after"
        return f"In {self.name} the order is {' '.join(self.order)} . An adjective stands {place} its noun ."


def invented(seed: int, count: int, concepts: Concepts, alike: bool = False) -> list[Tongue]:
    """Languages that have no word in common; if `alike`, all have the same word order."""
    draw = np.random.default_rng([seed, 4110])
    syllables = [c + v for c, v in itertools.product(CONSONANTS, VOWELS)]
    words = draw.permutation([a + b for a in syllables for b in syllables])
    languages = []
    for i in range(count):
        vocabulary = tuple(str(w) for w in words[i * concepts.size : (i + 1) * concepts.size])
        order = ORDERS[0] if alike else ORDERS[draw.integers(3)]
        languages.append(Tongue(vocabulary[0].capitalize(), vocabulary, order, alike or bool(draw.random() < 0.5)))
    return languages


def meanings(seed: int, count: int, concepts: Concepts) -> list[Meaning]:
    """`count` different meanings."""

    def stream() -> Iterator[Meaning]:
        draw = np.random.default_rng([seed, 4111])
        while True:
            yield concepts.draw(draw)

    sentences: dict[Meaning, None] = {}
    for meaning in stream():
        sentences.setdefault(meaning)
        if len(sentences) == count:
            break
    return list(sentences)


def texts(tongue: Tongue, some: Sequence[Meaning]) -> list[Text]:
    """Sentences of one language."""
    return [Text(text=tongue.sentence(m)) for m in some]


def pairs(source: Tongue, target: Tongue, some: Sequence[Meaning]) -> list[Parallel]:
    """Sentences with their translations."""
    return [
        Parallel(source=source.sentence(m), target=target.sentence(m), source_lang=source.name, target_lang=target.name)
        for m in some
    ]


def dictionary(source: Tongue, target: Tongue) -> list[Parallel]:
    """Every word with its translation."""
    return [
        Parallel(source=a, target=b, source_lang=source.name, target_lang=target.name)
        for a, b in zip(source.words, target.words, strict=True)
    ]
