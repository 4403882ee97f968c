"""Texts of some topics with Zipf frequencies, each topic with a label, and a few outliers without a topic.

A text is some words of its topic's own list mixed with common words. The label of a topic depends on the seed alone,
so only labelled texts reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from didact.types import Demo, Text

OWN, COMMON = 12, 40  # words in a topic's own list, and words common to all topics
LABELS = "red blue green white black brown".split()
STARTS, ENDS = "ba de fi go ku la me ni po ru sa te".split(), "b d f g k l m n p r s t v z".split()


@dataclass(frozen=True)
class Mixture:
    """The world.

    Args:
        topics: number of topics; their frequencies fall as 1 / rank.
        labels: number of different labels.
        outliers: share of the pool without a topic, labelled at random.
        words: words of the topic in a text.
        seed: of all sampling.
    """

    topics: int = 12
    labels: int = 3
    outliers: float = 0.1
    words: int = 6
    seed: int = 0

    def draw(self, pool: int, test: int) -> tuple[list[Text], list[Demo]]:
        """A pool whose texts have their label as `extra["completion"]`, and test questions without outliers."""
        rng = np.random.default_rng([self.seed, 71])
        words = rng.permutation([a + b + c for a in STARTS for b in STARTS for c in ENDS]).tolist()
        topic_words = [words[i * OWN : (i + 1) * OWN] for i in range(self.topics)]
        common = words[self.topics * OWN : self.topics * OWN + COMMON]
        label_of = rng.permutation(np.arange(self.topics) % self.labels)
        frequencies = 1 / np.arange(1.0, self.topics + 1)
        names = LABELS[: self.labels]

        def text(words: list[str]) -> str:
            drawn = [*rng.choice(words, self.words), *rng.choice(common, 3)]
            return " ".join(str(w) for w in rng.permutation(drawn)) + " ->"

        def sample() -> tuple[str, str]:
            topic = int(rng.choice(self.topics, p=frequencies / frequencies.sum()))
            return text(topic_words[topic]), names[label_of[topic]]

        rows, all_topic_words = [], words[: self.topics * OWN]
        for _ in range(pool):
            rows.append((text(all_topic_words), str(rng.choice(names))) if rng.random() < self.outliers else sample())
        texts = [Text(text=t, extra={"completion": label, "choices": names}) for t, label in rows]
        return texts, [Demo(prompt=t, completion=label, choices=names) for t, label in (sample() for _ in range(test))]
