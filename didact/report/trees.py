"""Parse trees over the same words, side by side: the first is the gold tree; spans that it lacks are marked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from didact import figures
from didact.report import svg

LEVEL, WORD_GAP = 32.0, 14.0  # px between levels of a tree, and between words
TOTAL_WIDTH, TREE_GAP = 800.0, 40.0  # px: width for all trees, and space between two
MAX_DEPTH = 60  # deeper trees in a file are refused
Span = tuple[int, int]


def draw(figure: figures.Trees) -> Markup:
    """Draw the trees side by side where they fit, each above its words."""
    names = [str(word) for word in figure.words]
    widths = [svg.CHARACTER * 1.15 * max(1, len(name)) + WORD_GAP for name in names]
    width = max(sum(widths), 230.0)
    columns = max(1, min(len(figure.trees), int((TOTAL_WIDTH + TREE_GAP) / (width + TREE_GAP))))
    height = 44 + LEVEL * max((_height(tree) for tree in figure.trees.values()), default=0)
    gold: set[Span] | None = None
    parts: list[str] = []
    titles = []
    for i, (name, tree) in enumerate(figure.trees.items()):
        spans = {_span(node) for node in _inner(tree)}
        text = str(name) if gold is None else f"{name}: {len(spans & gold)} of {len(gold)} spans right"
        gold = spans if gold is None else gold
        left, top = i % columns * (width + TREE_GAP), i // columns * (height + 26)
        word_x = [left + sum(widths[:j]) + widths[j] / 2 for j in range(len(names))]
        parts.append(svg.text(left, top + 12, svg.fitted(text, width + TREE_GAP / 2), "strong", text))
        labels: list[str] = []
        _draw(tree, word_x, top + height - 16, gold, parts, labels)
        parts += [*labels, *(svg.text(x, top + height, word, "middle") for x, word in zip(word_x, names, strict=True))]
        titles.append(text)
    rows = math.ceil(len(figure.trees) / columns)
    size = (width + TREE_GAP) * columns - TREE_GAP + 8, rows * (height + 26)
    return svg.root(*size, f"{figure.title}: {'; '.join(titles)}", parts, "chart figure")


def _draw(tree: Any, word_x: list[float], bottom: float, gold: set[Span], parts: list[str], labels: list[str]) -> float:
    """Draw a tree, and return the x of its root. Labels are collected apart, so that they are drawn over branches."""
    if isinstance(tree, int):
        return word_x[tree]
    label, below = tree
    tops = [_draw(node, word_x, bottom, gold, parts, labels) for node in below]
    x, y = sum(tops) / len(tops), bottom - LEVEL * _height(tree)
    is_correct = _span(tree) in gold
    for node, top in zip(below, tops, strict=True):
        parts.append(svg.line(x, y, top, bottom - LEVEL * _height(node), "branch" if is_correct else "branch other"))
    if label:
        labels.append(svg.text(x, y - 2, str(label), "halo middle" if is_correct else "halo middle name s2"))
    return x


def _height(tree: Any) -> int:
    return 0 if isinstance(tree, int) else 1 + max(_height(node) for node in tree[1])


def _inner(tree: Any, depth: int = 0) -> list[Any]:
    """All inner nodes.

    Raises:
        ValueError: too deep, or a node without anything below it.
    """
    if isinstance(tree, int):
        return []
    if depth > MAX_DEPTH or not tree[1]:
        raise ValueError("a tree too deep, or a node with nothing below it")
    return [tree, *(inner for node in tree[1] for inner in _inner(node, depth + 1))]


def _span(tree: Any) -> Span:
    """First and last word under a node."""

    def end(node: Any, choose: Callable[..., int]) -> int:
        return node if isinstance(node, int) else choose(end(below, choose) for below in node[1])

    return end(tree, min), end(tree, max)
