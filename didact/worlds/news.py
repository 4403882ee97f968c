"""Facts that change after a model has learned them, and paragraphs that state the new ones among others.

    あ色 banido . い色 sotemu . あ所 rurake .

A fact is an entity, a relation and a value. Each key (entity, relation) has its own small set of possible values: with
one set for all, a model this small does not learn to read in minutes. Names use a script without spaces, so that a
question is one token to a model but two words to a search: as in real search, paragraphs on another relation of the
entity, or on another entity, resemble the question too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from didact.types import Demo, Passage

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
KANA, RELATIONS = 0x3042, "色所業味音"  # entities are every second letter from KANA on
ORDERS = ("EQA", "EAQ", "EA", "EQ", "QA")  # of evidence, question and answer
Table = NDArray[np.int64]
Key = tuple[int, int]


@dataclass(frozen=True)
class News:
    """A world of `entities` x `relations` facts with `values` possible values each; a paragraph states `facts` of them.
    Its words and its old facts depend on `seed`; the new facts, and the documents, also on a day."""

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
        names = draw.permutation([a + b for a in syllables for b in syllables])
        shape = self.entities, self.relations, self.values
        return np.array(names[: int(np.prod(shape))]).reshape(shape)

    def old(self) -> Table:
        """The index of every key's old value."""
        return self._table(np.random.default_rng([self.seed, 1]))

    def new(self, day: int, share: float = 0.5) -> Table:
        """The index of every key's value now: a `share` of them has changed."""
        draw, old = np.random.default_rng([self.seed, 2, day]), self.old()
        alternative = (old + draw.integers(1, self.values, size=old.shape)) % self.values
        changed = draw.permutation(old.size).reshape(old.shape) < share * old.size
        return np.where(changed, alternative, old)

    def question(self, key: Key) -> str:
        """The question for a fact."""
        return chr(KANA + 2 * key[0]) + RELATIONS[key[1]]

    def items(self, table: Table, keys: Sequence[Key]) -> list[Demo]:
        """Questions with their answers according to a table."""
        return [Demo(prompt=self.question(k), completion=str(self.words()[k][table[k]])) for k in keys]

    def paragraph(self, table: Table, keys: Sequence[Key]) -> str:
        """A paragraph with one sentence per fact."""
        return " ".join(f"{self.question(k)} {self.words()[k][table[k]]} ." for k in keys)

    def near(self, draw: np.random.Generator, key: Key, told: bool = True) -> list[Key]:
        """Keys for a paragraph around `key`, which is among them if `told`: some share its entity or relation."""
        keys = [key] if told else []
        while len(keys) < self.facts:
            e, r = int(draw.integers(self.entities)), int(draw.integers(self.relations))
            candidate = [(key[0], r), (e, key[1]), (e, r)][draw.choice(3, p=[0.35, 0.1, 0.55])]
            if candidate != key and candidate not in keys:
                keys.append(candidate)
        return [keys[i] for i in draw.permutation(len(keys))]

    def beside(self, draw: np.random.Generator, key: Key) -> list[Key]:
        """Keys for a distractor paragraph: it has the entity and the relation of `key`, but in different facts."""
        e = (key[0] + 1 + int(draw.integers(self.entities - 1))) % self.entities
        r = (key[1] + 1 + int(draw.integers(self.relations - 1))) % self.relations
        keys = [(key[0], r), (e, key[1])]
        while len(keys) < self.facts:
            candidate = int(draw.integers(self.entities)), int(draw.integers(self.relations))
            keys += [candidate] if candidate != key and candidate not in keys else []
        return [keys[i] for i in draw.permutation(len(keys))]

    def documents(self, day: int, table: Table, each: int = 2, stale: float = 0.1) -> list[Passage]:
        """For every fact, `each` paragraphs that state it and as many distractors, which have its entity and relation
        in other facts; a share `stale` of all paragraphs states the old facts."""
        draw, old = np.random.default_rng([self.seed, 3, day]), self.old()
        keys = [(int(e), int(r)) for e, r in np.ndindex(*old.shape) for _ in range(each)]
        fact_lists = [self.near(draw, key) for key in keys] + [self.beside(draw, key) for key in keys]
        texts = [self.paragraph(old if draw.random() < stale else table, facts) for facts in fact_lists]
        return [Passage(text=text, url=f"https://news.invalid/{day}/{i}") for i, text in enumerate(texts)]

    def lessons(self, count: int, plain: bool) -> Iterator[Demo]:
        """Training records: the last field of a block of evidence, question and answer, in every order that is scored
        later.

        If `plain`, the answer follows from the evidence, whose facts are random. Otherwise the evidence may state the
        old facts, lack the fact in question, or be absent; in the last two cases the answer is the old value.
        """
        draw, old = np.random.default_rng([self.seed, 4, plain]), self.old()
        shares = [0.7, 0.1, 0.1, 0.1, 0.0] if plain else [0.55, 0.1, 0.1, 0.05, 0.2]
        for _ in range(count):
            yield self._lesson(draw, str(draw.choice(ORDERS, p=shares)), old, not plain)

    def _lesson(self, draw: np.random.Generator, order: str, old: Table, remembered: bool) -> Demo:
        key = int(draw.integers(self.entities)), int(draw.integers(self.relations))
        table = old if remembered and (order == "QA" or draw.random() < 0.1) else self._table(draw)
        is_told = not (remembered and order == "EQA" and draw.random() < 0.05)
        value = self.words()[key][(table if is_told else old)[key]]
        text = self.paragraph(table, self.near(draw, key, is_told))
        fields = {"E": f"Evidence: {text}", "Q": f"Question: {self.question(key)}", "A": f"Answer: {value}"}
        *context, last = (fields[name] for name in order)
        name, _, target = last.partition(" ")
        return Demo(prompt="\n".join([*context, name]), completion=f"{target}\n")

    def _table(self, draw: np.random.Generator) -> Table:
        return draw.integers(self.values, size=(self.entities, self.relations))
