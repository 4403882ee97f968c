"""A reader that knows only the language material in its prompt: MTOB's claim uses it in place of a large model."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from didact.claims.prompting.rule import Rule, drawn
from didact.data import materials
from didact.evaluate import translation as scores
from didact.worlds.tongues import ORDERS, Concepts, Meaning, Tongue

ENTRY = re.compile(r"^- (\S+)(?: \(\w+\))? = (\S+)$", re.MULTILINE)
ORDER, PLACE = re.compile(r"order is (\w) (\w) (\w)"), re.compile(r"adjective stands (before|after)")
Pairs = Sequence[tuple[list[str], list[str]]]


class Reader(Rule):
    """Looks words up in the prompt's entries, else infers them from its sentence pairs; puts them in the order that a
    grammar in the prompt gives, else in the one that explains most of the pairs, else leaves them in place.

    Args:
        own: the source language, which it knows.
        concepts: the kind of each word.
        careless: chance that a word comes out as a random one of the prompt's.
        seed: of these errors.
    """

    name = "a reader that looks things up"

    def __init__(self, own: Tongue, concepts: Concepts, careless: float, seed: int) -> None:
        self.own, self.careless, self.seed = own, careless, seed
        self.kinds = {w: concepts.kind(c) for c, w in enumerate(own.words)}

    def answer(self, prompt: str) -> str:
        """The translation of the prompt's last sentence."""
        sentence = prompt.rsplit("\n", 1)[0].rpartition(": ")[2].split()
        dictionary, pairs = dict(ENTRY.findall(prompt)), self._pairs(prompt)
        dictionary = {w: dictionary.get(w) or aligned(w, pairs) or w for w in self.kinds}
        order, first = self._grammar(prompt, dictionary, pairs)
        out = [dictionary.get(w, w) for w in self._ordered(sentence, order, first)]
        targets = sorted({t for t in dictionary.values() if t not in self.kinds})
        rng = drawn(self.seed, sentence, len(prompt))
        return " ".join(str(rng.choice(targets)) if targets and rng.random() < self.careless else w for w in out)

    def _pairs(self, prompt: str) -> Pairs:
        """Sentence pairs in the prompt, without the query."""
        rows = re.findall(rf"^{self.own.name}: (.+)\n\S+: (.+)$", prompt, re.MULTILINE)
        return [(x.split(), y.split()) for x, y in rows]

    def _grammar(self, prompt: str, known: Mapping[str, str], pairs: Pairs) -> tuple[str, bool]:
        order, position = ORDER.search(prompt), PLACE.search(prompt)
        if order and position:
            return "".join(order.groups()), position[1] == "before"
        if not pairs:
            return self.own.order, self.own.adjective_first

        def matches(grammar: tuple[str, bool]) -> int:
            return sum([known.get(w, w) for w in self._ordered(x, *grammar)] == y for x, y in pairs)

        return max(itertools.product(ORDERS[:3], (True, False)), key=matches)

    def _ordered(self, sentence: list[str], order: str, first: bool) -> list[str]:
        """The sentence in another word order; unchanged if it cannot be parsed."""
        concepts = {w: c for c, w in enumerate(self.own.words)}
        parts, nouns = [concepts.get(w, -1) for w in sentence], [w for w in sentence if self.kinds.get(w) == "noun"]
        verbs = [i for i, w in enumerate(sentence) if self.kinds.get(w) == "verb"]
        if len(nouns) != 2 or len(verbs) != 1 or -1 in parts:
            return sentence
        adjective = [
            next((concepts[w] for w in part if self.kinds[w] == "adjective"), -1)
            for part in (sentence[: verbs[0]], sentence[verbs[0] + 1 :])
        ]
        meaning = Meaning(concepts[nouns[0]], parts[verbs[0]], concepts[nouns[1]], *adjective)
        reordered = Tongue(self.own.name, self.own.words, order, first)
        return reordered.sentence(meaning).split()


def aligned(word: str, pairs: Pairs) -> str | None:
    """The translation of a word by votes: one for each target sentence of a source with the word, minus one for each of
    another source; None if no source has the word."""
    votes: Counter[str] = Counter()
    for x, y in pairs:
        for w in set(y):
            votes[w] += 1 if word in x else -1
    candidates = {w for x, y in pairs if word in x for w in y}
    return max(sorted(candidates), key=lambda w: votes[w]) if candidates else None


class AtRandom(materials.Lookup):
    """Sabotage: look up random entries."""

    def __call__(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """Random positions, seeded by the query."""
        return [random.Random(q).sample(range(self.size), min(k, self.size)) for q in queries]


def bare(of: Any, sentence: str, blocks: Any, book: str = "", right: Any = materials.prompt) -> str:
    """Sabotage: the retrieved material is left out of the prompt."""
    return str(right(of, sentence, [], ""))


def swapped(said: Sequence[str], wanted: Sequence[str], right: Any = scores.chrf, **how: Any) -> float:
    """Sabotage: references are scored against translations."""
    return float(right(wanted, said, **how))


def turned(records: Any, names: Any, right: Any = materials.facing) -> Any:
    """Sabotage: pairs with source and target swapped."""
    return [materials.turn(p) for p in right(records, names)]


def untouched(book: str, held: Any, canary: str = "") -> tuple[str, int]:
    """Sabotage: test sentences are not removed from the book."""
    return book, 0
