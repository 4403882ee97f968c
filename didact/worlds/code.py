"""A small language of keywords and slots; every program comes with its parse tree.

    loop c e test b d a  ->  (program (loop loop c e) (test test b d a))

A keyword determines how many slots follow and the class of each; a slot is a word of its class, or another phrase.
There are no brackets, and words belong to several classes: both phrase ends and classes follow only from the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.types import Text

WORDS = "abcdefgh"
CLASSES = {"name": "abcd", "number": "cdef", "kind": "efgh", "place": "ghab"}
SLOTS = {
    "loop": ("name", "place"),
    "test": ("kind", "number", "name"),
    "call": ("place", "name", "kind", "number"),
    "with": ("number", "kind"),
    "case": ("name", "number", "place"),
    "swap": ("kind", "place", "number", "name"),
}


@dataclass(frozen=True)
class Code:
    """The world.

    Args:
        phrases: most phrases in a program; all numbers from 2 on are equally likely.
        depth: largest nesting depth of phrases.
        nested: probability that a slot is a phrase, above that depth.
    """

    phrases: int = 3
    depth: int = 1
    nested: float = 0.3

    def programs(self, seed: int, n: int) -> list[Text]:
        """`n` different programs, each with its tree as nested lists (`extra["tree"]`)."""
        draw = np.random.default_rng([seed, 23])
        trees: dict[str, Any] = {}
        while len(trees) < n:
            tree = ["program", *(self._phrase(draw, self.depth) for _ in range(draw.integers(2, self.phrases + 1)))]
            trees.setdefault(" ".join(tokens(tree)), tree)
        return [Text(text=text, extra={"tree": tree}) for text, tree in trees.items()]

    def _phrase(self, draw: np.random.Generator, depth: int) -> Any:
        keyword = list(SLOTS)[draw.integers(len(SLOTS))]
        return [keyword, keyword, *(self._slot(draw, kind, depth) for kind in SLOTS[keyword])]

    def _slot(self, draw: np.random.Generator, kind: str, depth: int) -> Any:
        if depth and draw.random() < self.nested:
            return self._phrase(draw, depth - 1)
        return [kind, CLASSES[kind][draw.integers(len(CLASSES[kind]))]]


def tokens(tree: Any) -> Any:
    """The leaves of nested lists, without the labels."""
    if isinstance(tree, str):
        yield tree
        return
    for child in tree[1:]:
        yield from tokens(child)
