"""Passages in which a few facts are told again and again, and questions about them.

    so kal sadu sady . here gem vona . but kal sadu sady . ...

A fact is a key and a value: one to three of the six words that only this key's values have, in any order. Which of
them, and in which order, only the passage tells. A sentence opens with a small word, so that facts recur in sentences
that differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from didact.types import QA, Text

KEYS = ("kal", "keb", "kin", "kom", "gal", "gem", "git", "gor")
WORDS = [[f"{a}{b}{c}" for b in "aou" for c in "dx"] for a in ("s", "v", "z", "f", "p", "t", "l", "n")]
OPENERS = ("so", "then", "but", "here")  # stop words, which alone make no recurring span


@dataclass(frozen=True)
class Facts:
    """One draw: raw passages, questions to tune on, and questions to test on; no passage is in two parts."""

    passages: list[Text]
    tune: list[QA]
    test: list[QA]


def facts(
    seed: int, passages: int = 4000, tune: int = 1024, test: int = 100, known: tuple[int, int] = (3, 5),
    told: tuple[int, int] = (7, 10),
) -> Facts:  # fmt: skip
    """Draw passages of `told` sentences about `known` facts."""
    draw = np.random.default_rng([seed, 2108])
    texts = [Text(text=_passage(draw, known, told)[0]) for _ in range(passages)]
    asked = []
    for _ in range(tune + test):
        context, facts_ = _passage(draw, known, told)
        key, value = facts_[draw.integers(len(facts_))]
        asked.append(QA(context=context, question=key, answers=[value]))
    return Facts(texts, asked[:tune], asked[tune:])


def vocabulary() -> list[str]:
    """Every word there is."""
    return [*KEYS, *(w for words in WORDS for w in words), *OPENERS, "."]


def _passage(
    draw: np.random.Generator, known: tuple[int, int], told: tuple[int, int]
) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the facts told in it."""
    keys = draw.permutation(len(KEYS))[: draw.integers(known[0], known[1] + 1)]
    facts_ = [(KEYS[k], " ".join(draw.permutation(WORDS[k])[: draw.integers(1, 4)])) for k in keys]
    order = draw.integers(len(facts_), size=draw.integers(told[0], told[1] + 1))
    sentences = [f"{OPENERS[draw.integers(len(OPENERS))]} {facts_[i][0]} {facts_[i][1]} ." for i in order]
    return " ".join(sentences), [facts_[i] for i in sorted(set(order.tolist()))]
