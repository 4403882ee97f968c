"""A translator whose errors are known: self-mining's claim and example use it in place of a large model.

It is no model: its word knowledge is a table with a known share of errors, and it learns from demonstrations by a rule.
So the claim tests the procedure, and shows nothing about what language models know.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact.claims.prompting.rule import Rule, drawn
from didact.data import lexicon, shown
from didact.infer import mining
from didact.worlds.tongues import Tongue


class Noisy(Rule):
    """Translates between two languages with the same word order.

    Args:
        one: a language.
        other: another.
        knows: chance that a word's translation is right, independent for each direction; else it is any other word.
        slips: chance that a word of a sentence comes out as any other, drawn for each sentence.
        seed: of both.
    """

    name = "a translator by rule"

    def __init__(self, one: Tongue, other: Tongue, knows: float, slips: float, seed: int) -> None:
        self.tongues, self.slips, self.seed = {one.name: one, other.name: other}, slips, seed
        self.other = {one.name: other, other.name: one}
        self.known: dict[str, dict[str, str]] = {}
        for i, tongue in enumerate((one, other)):
            rng, targets = np.random.default_rng([seed, i, 2410]), self.other[tongue.name].words
            size = len(targets)
            wrong_words = (np.arange(size) + rng.integers(1, size, size)) % size
            right = rng.random(size) < knows
            self.known[tongue.name] = {
                w: targets[c if right[c] else wrong_words[c]] for c, w in enumerate(tongue.words)
            }  # fmt: skip

    def answer(self, prompt: str) -> str:
        """The last line's translation."""
        *blocks, last = prompt.split("\n\n")
        line = last.split("\n")[0]
        name, _, text = line.partition(": ")
        if name.endswith(" word"):
            return self.known[name.removesuffix(" word")].get(text, text)
        demos = [[row.partition(": ")[2].split() for row in block.split("\n")] for block in blocks]
        return " ".join(self._word(w, name, demos, (text, i)) for i, w in enumerate(text.split()))

    def _word(self, word: str, name: str, shown: Sequence[Sequence[Sequence[str]]], place: tuple[str, int]) -> str:
        """The word's most frequent translation, by position, in the demonstrations; else the one in its table."""
        rng = drawn(self.seed, place)
        if rng.random() < self.slips:
            return str(rng.choice(self.other[name].words))
        votes = Counter(
            y[i] for x, y in shown for i, w in enumerate(x) if w == word and len(x) == len(y)
        ).most_common(1)  # fmt: skip
        return votes[0][0] if votes else self.known[name].get(word, word)


def alike(one: Tongue, other: Tongue, noise: float, seed: int) -> Any:
    """Sentence embeddings: counts of concepts plus normal noise of standard deviation `noise`, the same for a text on
    every call."""
    concept = {w: c for tongue in (one, other) for c, w in enumerate(tongue.words)}

    @functools.cache
    def vector(text: str) -> Any:
        out = noise * drawn(seed, text).standard_normal(len(one.words))
        for word in text.split():
            if word in concept:
                out[concept[word]] += 1
        return out

    return lambda texts: np.array([vector(t) for t in texts])


def inverted(found: Any, back: Any, copies: bool = False, right: Any = lexicon.cycle_check) -> list[lexicon.Pair]:
    """Sabotage: words that come back are rejected, and the others kept."""
    return [
        lexicon.Pair(p.source, p.target, p.score, "" if p.reason.startswith("comes back") else p.reason or "came back")
        for p in right(found, back, copies)
    ]


def least_alike(queries: Any, sources: Any, alike: Any, *rest: Any, right: Any = shown.pick) -> shown.Picked:
    """Sabotage: the least similar pairs pass the filter."""
    return right(queries, sources, [-x for x in alike], *rest)


class Turned(mining.Miner):
    """Sabotage: in demonstrations the natural sentence of a pair is the source, the synthetic one the target."""

    def translate(self, sentences: Any, shown: Any, role: str) -> list[str]:
        """Translate with swapped pairs as demonstrations."""
        return super().translate(sentences, [[(y, x) for x, y in pairs] for pairs in shown], role)
