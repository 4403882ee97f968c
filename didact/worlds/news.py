"""Facts that change after a model has read them, and paragraphs that tell the new ones among others.

    あ色 banido . い色 sotemu . あ所 rurake .

A fact is an entity, a relation and a value; each key of the two has some values of its own, which alone it may take
(where any may have any, a model this small does not learn to read in minutes). Names are of a script without spaces, so
that what is asked about is one token to a model and two words to a search: paragraphs about another relation of the
entity, or another entity, are near to a question too, as they are in life.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from didact.types import Demo, Passage

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
KANA, RELATIONS = 0x3042, "色所業味音"  # the first of the entities' letters, every other one of which is taken
ORDERS = ("EQA", "EAQ", "EA", "EQ", "QA")  # of evidence, question and answer
Table = NDArray[np.int64]
Key = tuple[int, int]


@dataclass(frozen=True)
class News:
    """A world of `entities` x `relations` facts, of `values` each; a paragraph tells some `facts`. Its words and what
    was true before follow from `seed`; what is true now, and who tells it, from a day."""

    seed: int = 0
    entities: int = 8
    relations: int = 4
    values: int = 4
    facts: int = 3

    @functools.lru_cache  # noqa: B019  (worlds are few, small and frozen)
    def words(self) -> NDArray[np.str_]:
        """The values of every key `(entities, relations, values)`."""
        draw = np.random.default_rng([self.seed, 2203])
        syllables = [c + v for c in CONSONANTS for v in VOWELS]
        some = draw.permutation([a + b for a in syllables for b in syllables])
        shape = self.entities, self.relations, self.values
        return np.array(some[: int(np.prod(shape))]).reshape(shape)

    def old(self) -> Table:
        """Which value every key had."""
        return self._table(np.random.default_rng([self.seed, 1]))

    def new(self, day: int, share: float = 0.5) -> Table:
        """Which value it has now: a share of them another one."""
        draw, old = np.random.default_rng([self.seed, 2, day]), self.old()
        other = (old + draw.integers(1, self.values, size=old.shape)) % self.values
        changed = draw.permutation(old.size).reshape(old.shape) < share * old.size
        return np.where(changed, other, old)

    def question(self, key: Key) -> str:
        """What is asked about a fact."""
        return chr(KANA + 2 * key[0]) + RELATIONS[key[1]]

    def items(self, table: Table, keys: Sequence[Key]) -> list[Demo]:
        """Questions with the answers of a table."""
        return [Demo(prompt=self.question(k), completion=str(self.words()[k][table[k]])) for k in keys]

    def paragraph(self, table: Table, keys: Sequence[Key]) -> str:
        """Facts, a sentence each."""
        return " ".join(f"{self.question(k)} {self.words()[k][table[k]]} ." for k in keys)

    def near(self, draw: np.random.Generator, key: Key, told: bool = True) -> list[Key]:
        """Facts for a paragraph about one, which is itself among them or not: mostly of its entity or relation."""
        keys = [key] if told else []
        while len(keys) < self.facts:
            e, r = int(draw.integers(self.entities)), int(draw.integers(self.relations))
            other = [(key[0], r), (e, key[1]), (e, r)][draw.choice(3, p=[0.35, 0.1, 0.55])]
            if other != key and other not in keys:
                keys.append(other)
        return [keys[i] for i in draw.permutation(len(keys))]

    def beside(self, draw: np.random.Generator, key: Key) -> list[Key]:
        """Facts for a paragraph that has a key's entity and relation, each in another fact."""
        e = (key[0] + 1 + int(draw.integers(self.entities - 1))) % self.entities
        r = (key[1] + 1 + int(draw.integers(self.relations - 1))) % self.relations
        keys = [(key[0], r), (e, key[1])]
        while len(keys) < self.facts:
            other = int(draw.integers(self.entities)), int(draw.integers(self.relations))
            keys += [other] if other != key and other not in keys else []
        return [keys[i] for i in draw.permutation(len(keys))]

    def documents(self, day: int, table: Table, each: int = 2, stale: float = 0.1) -> list[Passage]:
        """For every fact `each` paragraphs that tell it, a share of them as the facts were, and as many that have its
        entity and its relation in other facts, and do not tell it."""
        draw, old = np.random.default_rng([self.seed, 3, day]), self.old()
        keys = [(int(e), int(r)) for e, r in np.ndindex(*old.shape) for _ in range(each)]
        told = [self.near(draw, key) for key in keys] + [self.beside(draw, key) for key in keys]
        texts = [self.paragraph(old if draw.random() < stale else table, some) for some in told]
        return [Passage(text=text, url=f"https://news.invalid/{day}/{i}") for i, text in enumerate(texts)]

    def lessons(self, count: int, plain: bool) -> Iterator[Demo]:
        """What a model learns from: the field that comes last in a block of evidence, question and answer, in any order
        that is scored later.

        `plain` ones are answered by their evidence, whose facts are any. In the others it may tell the facts as they
        were, or not tell what is asked, or be none, and then the answer is what was true.
        """
        draw, old = np.random.default_rng([self.seed, 4, plain]), self.old()
        shares = [0.7, 0.1, 0.1, 0.1, 0.0] if plain else [0.55, 0.1, 0.1, 0.05, 0.2]
        for _ in range(count):
            yield self._lesson(draw, str(draw.choice(ORDERS, p=shares)), old, not plain)

    def _lesson(self, draw: np.random.Generator, order: str, old: Table, remembered: bool) -> Demo:
        key = int(draw.integers(self.entities)), int(draw.integers(self.relations))
        table = old if remembered and (order == "QA" or draw.random() < 0.1) else self._table(draw)
        told = not (remembered and order == "EQA" and draw.random() < 0.05)
        value = self.words()[key][(table if told else old)[key]]
        text = self.paragraph(table, self.near(draw, key, told))
        fields = {"E": f"Evidence: {text}", "Q": f"Question: {self.question(key)}", "A": f"Answer: {value}"}
        *before, last = (fields[name] for name in order)
        name, _, wanted = last.partition(" ")
        return Demo(prompt="\n".join([*before, name]), completion=f"{wanted}\n")

    def _table(self, draw: np.random.Generator) -> Table:
        return draw.integers(self.values, size=(self.entities, self.relations))
