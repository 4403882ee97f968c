"""Texts of some topics, a few of which are frequent, each topic with a label; and a few texts of no topic.

A text is some words of its topic's own list with common words between them. Which label a topic has is drawn anew in
every pool, so that only labelled texts tell it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from didact.types import Demo, Text

OWN, COMMON = 12, 40  # words of a topic's list, and of all
LABELS = "red blue green white black brown".split()
STARTS, ENDS = "ba de fi go ku la me ni po ru sa te".split(), "b d f g k l m n p r s t v z".split()


@dataclass(frozen=True)
class Mixture:
    """The world.

    Args:
        topics: their frequencies fall as 1 / rank.
        labels: how many different.
        outliers: share of the pool that is of no topic, labelled at random.
        words: of a text's topic.
        seed: of everything.
    """

    topics: int = 12
    labels: int = 3
    outliers: float = 0.1
    words: int = 6
    seed: int = 0

    def draw(self, pool: int, test: int) -> tuple[list[Text], list[Demo]]:
        """A pool whose lines have their label as `completion`, and questions without outliers."""
        rng = np.random.default_rng([self.seed, 71])
        every = rng.permutation([a + b + c for a in STARTS for b in STARTS for c in ENDS]).tolist()
        lists = [every[i * OWN : (i + 1) * OWN] for i in range(self.topics)]
        common = every[self.topics * OWN : self.topics * OWN + COMMON]
        label_of = rng.permutation(np.arange(self.topics) % self.labels)
        share = 1 / np.arange(1.0, self.topics + 1)
        names = LABELS[: self.labels]

        def text(words: list[str]) -> str:
            said = [*rng.choice(words, self.words), *rng.choice(common, 3)]
            return " ".join(str(w) for w in rng.permutation(said)) + " ->"

        def one() -> tuple[str, str]:
            topic = int(rng.choice(self.topics, p=share / share.sum()))
            return text(lists[topic]), names[label_of[topic]]

        rows, spare = [], every[: self.topics * OWN]
        for _ in range(pool):
            rows.append((text(spare), str(rng.choice(names))) if rng.random() < self.outliers else one())
        texts = [Text(text=t, extra={"completion": label, "choices": names}) for t, label in rows]
        return texts, [Demo(prompt=t, completion=label, choices=names) for t, label in (one() for _ in range(test))]
