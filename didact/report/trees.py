"""Trees over the same words, side by side: the first is the true one, and what others have beside it is marked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from didact import figures
from didact.report import svg

LEVEL, GAP = 32.0, 14.0  # px between two heights of a tree, and between two words
ROOM, BETWEEN = 800.0, 40.0  # px across for all of them, and between two
DEEP = 60  # what a file says can be no deeper
Span = tuple[int, int]


def draw(figure: figures.Trees) -> Markup:
    """The trees, side by side where there is room, each above its words."""
    names = [str(word) for word in figure.words]
    wide = [svg.CHARACTER * 1.15 * max(1, len(name)) + GAP for name in names]
    width = max(sum(wide), 230.0)
    columns = max(1, min(len(figure.trees), int((ROOM + BETWEEN) / (width + BETWEEN))))
    high = 44 + LEVEL * max((_height(tree) for tree in figure.trees.values()), default=0)
    true: set[Span] | None = None
    parts: list[str] = []
    told = []
    for place, (name, tree) in enumerate(figure.trees.items()):
        spans = {_span(node) for node in _inner(tree)}
        text = str(name) if true is None else f"{name}: {len(spans & true)} of {len(true)} spans right"
        true = spans if true is None else true
        left, top = place % columns * (width + BETWEEN), place // columns * (high + 26)
        at = [left + sum(wide[:i]) + wide[i] / 2 for i in range(len(names))]
        parts.append(svg.text(left, top + 12, svg.fitted(text, width + BETWEEN / 2), "strong", text))
        labels: list[str] = []
        _draw(tree, at, top + high - 16, true, parts, labels)
        parts += [*labels, *(svg.text(x, top + high, word, "middle") for x, word in zip(at, names, strict=True))]
        told.append(text)
    rows = math.ceil(len(figure.trees) / columns)
    size = (width + BETWEEN) * columns - BETWEEN + 8, rows * (high + 26)
    return svg.root(*size, f"{figure.title}: {'; '.join(told)}", parts, "chart figure")


def _draw(tree: Any, at: list[float], floor: float, true: set[Span], parts: list[str], labels: list[str]) -> float:
    """Draw a tree; returns where its top is, across. Labels come last, so that no branch crosses them."""
    if isinstance(tree, int):
        return at[tree]
    label, below = tree
    tops = [_draw(node, at, floor, true, parts, labels) for node in below]
    x, y = sum(tops) / len(tops), floor - LEVEL * _height(tree)
    right = _span(tree) in true
    for node, top in zip(below, tops, strict=True):
        parts.append(svg.line(x, y, top, floor - LEVEL * _height(node), "branch" if right else "branch other"))
    if label:
        labels.append(svg.text(x, y - 2, str(label), "halo middle" if right else "halo middle name s2"))
    return x


def _height(tree: Any) -> int:
    return 0 if isinstance(tree, int) else 1 + max(_height(node) for node in tree[1])


def _inner(tree: Any, deep: int = 0) -> list[Any]:
    """All nodes with something below them.

    Raises:
        ValueError: too deep, or a node without anything below it.
    """
    if isinstance(tree, int):
        return []
    if deep > DEEP or not tree[1]:
        raise ValueError("a tree too deep, or a node with nothing below it")
    return [tree, *(inner for node in tree[1] for inner in _inner(node, deep + 1))]


def _span(tree: Any) -> Span:
    """First and last word under a node."""

    def end(node: Any, which: Callable[..., int]) -> int:
        return node if isinstance(node, int) else which(end(below, which) for below in node[1])

    return end(tree, min), end(tree, max)
