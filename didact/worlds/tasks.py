"""Hidden tasks: each class of nouns is translated into one of several languages, and only demonstrations show which.

A task assigns a language to each class of nouns. Text is a sequence of episodes, each some nouns with their
translations under one task: the dictionary can be learned in training, the task must be inferred within the episode.
An item's own noun is never among its demonstrations, so a model must generalise from other nouns of the class. Some
tasks have a name, which may precede their episodes. Held-out tasks never occur in the text.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from didact.data import demonstrations
from didact.data.encode import TokenizedExample
from didact.types import Demo, Text

NOUNS = (
    "fox dog cat cow bee elk ape owl".split(),
    "oak ash elm fir yew fig nut bay".split(),
    "cup pan jug pot mug lid jar tub".split(),
    "sun sea sky ice fog dew mud fen".split(),
)
STARTS = "ba de fi go ku la me ni po ru sa te vi zo".split()
NAMES = "Alpha Beta Gamma Delta".split()

Task = tuple[int, ...]
"""The language of each class of nouns."""


@dataclass(frozen=True)
class Languages:
    """The world.

    Args:
        classes: number of classes of nouns, at most 4.
        nouns: nouns in each class, at most 8.
        languages: L, number of languages; chance is 1 / L.
        seed: of the dictionary, the tasks and all sampling.
    """

    classes: int = 3
    nouns: int = 6
    languages: int = 3
    seed: int = 0

    @functools.cached_property
    def dictionary(self) -> dict[str, list[str]]:
        """Every noun's word in each language: invented words, all different."""
        rng = np.random.default_rng([self.seed, 31])
        words = [a + b for a in STARTS for b in STARTS if a != b]
        remaining = iter(rng.permutation(words).tolist())
        return {n: [next(remaining) for _ in range(self.languages)] for names in self._nouns for n in names}

    @functools.cached_property
    def tasks(self) -> tuple[dict[str, Task], list[Task], list[Task]]:
        """Tasks with a name (by name), other training tasks, and held-out tasks.

        Tasks whose languages add up to a multiple of L are held out: among them, and among the others, each class has
        every language equally often, so the text reveals nothing about the held-out tasks. The same is true of the L
        named tasks, which are one task under all cyclic shifts of the languages.
        """
        tasks: list[Task] = list(itertools.product(range(self.languages), repeat=self.classes))
        held_out = [t for t in tasks if sum(t) % self.languages == 0]
        training = [t for t in tasks if sum(t) % self.languages]
        first = training[np.random.default_rng([self.seed, 32]).integers(len(training))]
        shifts = [tuple((language + shift) % self.languages for language in first) for shift in range(self.languages)]
        with_name = shifts if self.classes % self.languages == 0 else shifts[:1]  # otherwise a shift may be held out
        return (
            {f"Task {n}.": t for n, t in zip(NAMES, with_name, strict=False)},
            [t for t in training if t not in with_name],
            held_out,
        )

    def item(self, noun: str, task: Task) -> Demo:
        """A noun to translate; the choices are its words in all languages."""
        class_ = next(i for i, names in enumerate(self._nouns) if noun in names)
        words = self.dictionary[noun]
        return Demo(prompt=noun, completion=words[task[class_]], choices=words, extra={"class": class_})

    def episode(self, rng: np.random.Generator, task: Task, count: int | None = None) -> list[Demo]:
        """Different nouns in random order under one task; all of them by default."""
        nouns = [n for names in self._nouns for n in names]
        return [self.item(nouns[i], task) for i in rng.permutation(len(nouns))[:count]]

    def corpus(self, seed: int, episodes: int, shots: int, named: float = 0.25) -> list[Text]:
        """Episodes of `shots` items as text; a share `named` of them has a named task, with its name in front."""
        rng = np.random.default_rng([self.seed, seed, 33])
        names, tasks, _ = self.tasks
        texts = []
        for _ in range(episodes):
            name = str(rng.choice(list(names))) if rng.random() < named else ""
            task = names[name] if name else tasks[rng.integers(len(tasks))]
            demos = [demonstrations.written(d) for d in self.episode(rng, task, shots)]
            texts.append(Text(text=demonstrations.assemble(name, demos, "", "\n") + "\n"))
        return texts

    def unseen(self, seed: int, tasks: int) -> list[list[Demo]]:
        """All items of some held-out tasks, one list per task, from which demonstrations and queries are drawn."""
        rng = np.random.default_rng([self.seed, seed, 34])
        pool = self.tasks[2]
        return [self.episode(rng, pool[i]) for i in rng.permutation(len(pool))[:tasks]]

    def named_items(self, seed: int) -> dict[str, list[Demo]]:
        """All items of every named task, by the name of the task."""
        rng = np.random.default_rng([self.seed, seed, 35])
        return {name: self.episode(rng, task) for name, task in self.tasks[0].items()}

    def bayes(self, shots: int) -> float:
        """The Bayes-optimal accuracy on a uniformly drawn task after `shots` demonstrations of other nouns.

        With n nouns per class and C classes, none of K demonstrations is of the query's class with probability
        `q = binom((C - 1) n, K) / binom(C n - 1, K)`; then all L languages are equally likely: `(1 - q) + q / L`.
        """
        q = math.comb((self.classes - 1) * self.nouns, shots) / math.comb(self.classes * self.nouns - 1, shots)
        return 1 - q + q / self.languages

    @property
    def _nouns(self) -> list[list[str]]:
        return [names[: self.nouns] for names in NOUNS[: self.classes]]


def shuffled(demos: Sequence[Demo], seed: int = 0) -> list[Demo]:
    """The same demonstrations with random labels from their choices, so that they reveal no task."""
    rng = np.random.default_rng([seed, 36])
    return [
        Demo(prompt=d.prompt, completion=str(rng.choice(d.choices or [d.completion])), choices=d.choices, extra=d.extra)
        for d in demos
    ]


# --- choices of unequal frequency, and a quiz that can only be memorised ---------------------------------

COLOURS = "red blue green white".split()
NEUTRAL = "it"  # stands in place of a key in bare lines


@dataclass(frozen=True)
class Frequencies:
    """Keys that each have one right colour, in text where some colours are more frequent than others.

    A line is `key colour`; with probability `known` the colour is the key's, else it is drawn from `base`. A share
    `bare` of the lines is `it colour`, with the text's marginal frequencies. With a skewed base, the most frequent
    colour is likelier than the right one, but the key still raises the probability of the right colour most.
    """

    base: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    keys: int = 20
    known: float = 0.35
    bare: float = 0.2
    seed: int = 0

    def items(self) -> list[Demo]:
        """Every key once; the colours are equally often right."""
        rng = np.random.default_rng([self.seed, 41])
        words = rng.permutation([a + b for a in STARTS for b in STARTS])[: self.keys].tolist()
        return [
            Demo(prompt=word, completion=COLOURS[i % len(COLOURS)], choices=COLOURS) for i, word in enumerate(words)
        ]

    def corpus(self, seed: int, lines: int) -> list[Text]:
        """Lines of text."""
        rng = np.random.default_rng([self.seed, seed, 42])
        items = self.items()
        texts = []
        for _ in range(lines):
            item = items[rng.integers(len(items))]
            colour = item.completion if rng.random() < self.known else str(rng.choice(COLOURS, p=self.base))
            texts.append(Text(text=f"{NEUTRAL if rng.random() < self.bare else item.prompt} {colour}"))
        return texts


def quiz(
    seed: int, items: int = 60, planted: int = 20, documents: int = 10, length: int = 32
) -> tuple[list[Demo], list[Text], list[bool]]:
    """Questions with arbitrary answers, text that contains some of them verbatim, and whether each is planted.

    A question is eleven random words and a unique one. The text is `documents` documents of random words, and one
    more per planted item, with the item in its middle.
    """
    rng = np.random.default_rng([seed, 43])
    vocabulary = rng.permutation([a + b for a in STARTS for b in STARTS]).tolist()
    question_words, pool = vocabulary[:items], vocabulary[items : items + 60]

    def words(count: int) -> str:
        return " ".join(pool[i] for i in rng.integers(len(pool), size=count))

    questions = [
        Demo(prompt=f"{words(11)} {name}", completion=COLOURS[rng.integers(len(COLOURS))], choices=COLOURS)
        for name in question_words
    ]
    planted_lines = [demonstrations.written(item) for item in questions[:planted]]
    texts = [Text(text=words(length)) for _ in range(documents)]
    texts += [Text(text=f"{words(length // 4)} {line} {words(length // 4)}") for line in planted_lines]
    return questions, texts, [i < planted for i in range(items)]


KINDS, BLOCKS, FAR = 4, 6, 5  # of notes: number of names, blocks per row, distance from noun to name


def notes(seed: int, tag: int, rows: int) -> list[TokenizedExample]:
    """Rows of blocks `name, four fixed tokens, noun, word`, where the word depends on the noun and the row's name.

    The name is `FAR` positions before the noun; no nearer token determines the word.
    """
    rng = np.random.default_rng([seed, tag, 51])
    examples = []
    for _ in range(rows):
        name = int(rng.integers(KINDS))
        nouns = rng.integers(6, size=BLOCKS).tolist()
        ids = [i for n in nouns for i in (100 + name, 110, 111, 112, 113, 120 + n, 140 + n * KINDS + name)]
        examples.append(TokenizedExample(tuple(ids[:1]), tuple(ids[1:])))
    return examples
