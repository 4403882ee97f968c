"""Labelled trees over the tokens of a text, and their encoding as three lists: heights, labels, labels of leaves.

A tree is made binary, and its n leaves give `d`, `c` (n - 1 each: height and label of the lowest common ancestor of
two neighbours) and `u` (n: the labels of nodes above that leaf alone). Only the order of the heights matters for
decoding, so that a probe may predict any numbers.

Source: Hernandez Lopez et al. 2022, arXiv:2206.11719, section 3, after Shen et al. 2018, arXiv:1806.04168.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from didact.types import UserError

EMPTY = "<empty>"  # label of the dummy nodes that make a tree binary, and of leaves without a node of their own
JOIN = "<sep>"  # joins the labels of nodes that have one child each
BAD_ROOT = "bad_root"  # label for a predicted root that has none


class Leaf(NamedTuple):
    """A token: its span of characters."""

    start: int
    end: int


@dataclass(frozen=True)
class Node:
    """A non-terminal over its children (at least one), in the order of the text."""

    label: str
    children: tuple[Node | Leaf, ...]


class Code(NamedTuple):
    """A tree over n leaves as heights `d` and labels `c` (n - 1 each), and labels of leaves `u` (n)."""

    d: tuple[float, ...]
    c: tuple[str, ...]
    u: tuple[str, ...]


class Constituent(NamedTuple):
    """A non-terminal and the leaves it spans, the last one included."""

    label: str
    first: int
    last: int


def leaves(tree: Node | Leaf) -> list[Leaf]:
    """The leaves in order."""
    return [tree] if isinstance(tree, Leaf) else [leaf for child in tree.children for leaf in leaves(child)]


def encode(tree: Node | Leaf) -> Code:
    """Encode a tree as `(d, c, u)`."""
    d, c, u, _ = _encoded(tree)
    return Code(tuple(d), tuple(c), tuple(u))


def _encoded(tree: Node | Leaf, above: str = "") -> tuple[list[float], list[str], list[str], int]:
    """`(d, c, u, height)` of a tree below a chain of nodes with one child each, whose joined labels are `above`."""
    if isinstance(tree, Leaf):
        return [], [], [above or EMPTY], 0
    label = f"{above}{JOIN}{tree.label}" if above else tree.label
    if len(tree.children) == 1:
        return _encoded(tree.children[0], label)
    parts = [_encoded(child) for child in tree.children]
    d, c, u, height = parts[-1]
    for i in range(len(parts) - 2, -1, -1):  # right-branching, with dummy nodes below the first
        left = parts[i]
        height = max(left[3], height) + 1
        d, c, u = [*left[0], height, *d], [*left[1], label if i == 0 else EMPTY, *c], left[2] + u
    return d, c, u, height


def constituents(code: Code) -> list[Constituent]:
    """Decode the non-terminals, parents before children; the greatest height splits first."""
    return [Constituent(label, first, last) for first, last, labels in _segments(code) for label in labels]


def _segments(code: Code) -> Iterator[tuple[int, int, list[str]]]:
    d = np.asarray(code.d, dtype=float)
    stack = [(0, len(code.u) - 1)]
    while stack:
        first, last = stack.pop()
        label = code.u[first]
        if first < last:
            at = first + int(np.argmax(d[first:last]))
            label = code.c[at]
            stack += [(at + 1, last), (first, at)]
            if label == EMPTY and (first, last) == (0, len(code.u) - 1):
                label = BAD_ROOT
        if label != EMPTY:
            yield first, last, label.split(JOIN)


def decode(code: Code, places: Sequence[Leaf] | None = None) -> Node:
    """Decode the tree, over leaves at these places (by default their numbers)."""
    terminals = places if places is not None else [Leaf(i, i + 1) for i in range(len(code.u))]
    spans = [*constituents(code)] or [Constituent(BAD_ROOT, 0, len(code.u) - 1)]

    def children(first: int, last: int, at: int) -> tuple[tuple[Node | Leaf, ...], int]:
        """The children of a span, from constituent number `at` on, and the number of the next constituent."""
        out: list[Node | Leaf] = []
        while first <= last:
            if at < len(spans) and spans[at].first == first and spans[at].last <= last:
                label, _, end = spans[at]
                inside, at = children(first, end, at + 1)
                out.append(Node(label, inside))
                first = end + 1
            else:
                out.append(terminals[first])
                first += 1
        return tuple(out), at

    tops, _ = children(0, len(code.u) - 1, 0)
    return tops[0] if len(tops) == 1 and isinstance(tops[0], Node) else Node(BAD_ROOT, tops)


class Score(NamedTuple):
    """Agreement of two trees' constituents."""

    precision: float
    recall: float
    f1: float


def score(predicted: Sequence[Constituent], true: Sequence[Constituent], official: bool = False) -> Score:
    """Precision, recall and F1 of constituents, as multisets.

    The official code counts every predicted one that is among the true ones, so that predicting one twice raises the
    recall (`official`).
    """
    counts = Counter(predicted)
    true_counts = Counter(true)
    hits = sum(n for c, n in counts.items() if c in true_counts) if official else (counts & true_counts).total()
    precision, recall = (hits / max(1, len(side)) for side in (predicted, true))
    return Score(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0)


def control(codes: Sequence[Code], words: Sequence[Sequence[Hashable]], seed: int = 0) -> list[Code]:
    """The control task: every word has one height, label and leaf label, drawn from those of all trees.

    A small random number per word keeps the heights distinct.
    """
    rng = np.random.default_rng([seed, 19])
    splits = [pair for code in codes for pair in zip(code.d, code.c, strict=True)]
    tops = [label for code in codes for label in code.u]
    assigned: dict[Hashable, tuple[float, str, str]] = {}
    for word in dict.fromkeys(word for row in words for word in row):
        height, label = splits[rng.integers(len(splits))]
        assigned[word] = (height + 0.5 * rng.random(), label, tops[rng.integers(len(tops))])
    out = []
    for row in words:
        own = [assigned[word] for word in row]
        out.append(Code(tuple(d for d, _, _ in own[1:]), tuple(c for _, c, _ in own[1:]), tuple(u for _, _, u in own)))
    return out


# --- nested lists in records ---------------------------------------------------------------------


def of_lists(value: Any, text: str) -> Node:
    """Parse a tree of nested lists, `["sum", "a", ["product", "b", "*", "c"]]`, whose strings are the text's tokens.

    Raises:
        UserError: it is not such a tree, or a token is not where it should be.
    """
    at = 0

    def read(part: Any) -> Node | Leaf:
        nonlocal at
        if isinstance(part, str):
            start = text.find(part, at) if part else -1
            if start < 0 or text[at:start].strip():
                raise UserError(f"field 'tree': token {part[:40]!r} does not follow at character {at} of the text")
            at = start + len(part)
            return Leaf(start, at)
        if not isinstance(part, list | tuple) or len(part) < 2 or not isinstance(part[0], str):
            raise UserError("field 'tree': must be [label, child, ...], where a child is such a list or a token")
        return Node(part[0], tuple(read(child) for child in part[1:]))

    try:
        tree = read(value)
    except RecursionError:
        raise UserError("field 'tree': nested too deeply") from None
    if isinstance(tree, Leaf) or text[at:].strip():
        raise UserError(f"field 'tree': spans {text[:at][-40:]!r} and not the whole text")
    return tree


def to_lists(tree: Node | Leaf, text: str) -> Any:
    """The inverse of `of_lists`."""
    if isinstance(tree, Leaf):
        return text[tree.start : tree.end]
    return [tree.label, *(to_lists(child, text) for child in tree.children)]
