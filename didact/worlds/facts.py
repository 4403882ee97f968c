"""Passages that repeat a few facts, and questions about them.

    so kal sadu sady . here gem vona . but kal sadu sady . ...

A fact is a key and a value: one to three of six words specific to the key, in any order. Only the passage tells which
of them, and in which order. A sentence opens with a small word, so that facts recur in sentences that differ.
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
    """One draw: raw passages, questions for tuning and questions for testing; the parts share no passage."""

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
    questions = []
    for _ in range(tune + test):
        context, told_facts = _passage(draw, known, told)
        key, value = told_facts[draw.integers(len(told_facts))]
        questions.append(QA(context=context, question=key, answers=[value]))
    return Facts(texts, questions[:tune], questions[tune:])


def vocabulary() -> list[str]:
    """All words of the world."""
    return [*KEYS, *(w for words in WORDS for w in words), *OPENERS, "."]


def _passage(
    draw: np.random.Generator, known: tuple[int, int], told: tuple[int, int]
) -> tuple[str, list[tuple[str, str]]]:
    """A passage's text, and the facts that it states."""
    keys = draw.permutation(len(KEYS))[: draw.integers(known[0], known[1] + 1)]
    facts = [(KEYS[k], " ".join(draw.permutation(WORDS[k])[: draw.integers(1, 4)])) for k in keys]
    order = draw.integers(len(facts), size=draw.integers(told[0], told[1] + 1))
    sentences = [f"{OPENERS[draw.integers(len(OPENERS))]} {facts[i][0]} {facts[i][1]} ." for i in order]
    return " ".join(sentences), [facts[i] for i in sorted(set(order.tolist()))]
