"""Scrambled words: five tasks in which a word must be recovered from its letters.

Source: Brown et al. 2020, arXiv:2005.14165, section 3.9.2.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterable

import numpy as np

from didact.types import Demo, UserError

INSERTED = " .,;:!?-/"
DESCRIPTION = "Please unscramble the letters into a word, and write that word:"


def cycle(word: str, rng: np.random.Generator) -> str:
    """CL: the letters rotated by a random number of positions, at least one."""
    at = int(rng.integers(1, len(word)))
    return word[at:] + word[:at]


def anagram(word: str, rng: np.random.Generator, ends: int = 1) -> str:
    """A1 and A2: the letters shuffled, except the first and last `ends` letters."""
    inner = list(word[ends : len(word) - ends])
    return word[:ends] + "".join(inner[i] for i in rng.permutation(len(inner))) + word[len(word) - ends :]


def insertion(word: str, rng: np.random.Generator) -> str:
    """RI: a random mark or space between every two letters."""
    marks = [INSERTED[i] for i in rng.integers(len(INSERTED), size=len(word) - 1)]
    return "".join(a + b for a, b in zip(word, [*marks, ""], strict=True))


def reverse(word: str, rng: np.random.Generator | None = None) -> str:
    """RW: the letters backwards."""
    return word[::-1]


TASKS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "CL": cycle,
    "A1": anagram,
    "A2": lambda word, rng: anagram(word, rng, ends=2),
    "RI": insertion,
    "RW": reverse,
}


def problems(task: str, words: Iterable[str], count: int | None = None, seed: int = 0) -> list[Demo]:
    """One problem per word, in random order: `skicts =` is answered `sticks`.

    Raises:
        UserError: no such task.
    """
    if task not in TASKS:
        raise UserError(f"scramble task '{task}': choose from {', '.join(TASKS)}")
    rng = np.random.default_rng([seed, list(TASKS).index(task), 92])
    pool = list(words)
    drawn = [pool[i] for i in rng.permutation(len(pool))[:count]]
    return [
        Demo(prompt=f"{TASKS[task](word, rng)} =", completion=word, task=task, instruction=DESCRIPTION)
        for word in drawn
    ]


def frequent(texts: Iterable[str], most: int = 10_000) -> list[str]:
    """The most frequent words of 5 to 14 letters in some texts, in lower case, most frequent first."""
    counts = collections.Counter(w for text in texts for w in re.findall(r"[a-z]+", text.lower()) if 4 < len(w) < 15)
    return sorted(counts, key=lambda w: (-counts[w], w))[:most]


def standard_words(most: int = 10_000) -> list[str]:
    """Words of Python's manual, which every installation has; it contains a few thousand of them."""
    from pydoc_data.topics import topics

    return frequent(topics.values(), most)
