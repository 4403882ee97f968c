"""Layout of rows in a forward pass: every physical row holds trees of tokens, and a shared prefix is stored once.

Two rows that begin with the same tokens (the sides of a preference, the choices of an item, demonstrations
shared by many items) are one path and then two branches. A token attends to itself and the tokens before it on
its own path; its position is its depth. The tokens of a tree are in depth-first order, so that one number per
token gives the mask: token i attends to token j if `j <= i < reach[j]`, `reach[j]` being the index after the last
token below j. Unrelated documents in one physical row are trees side by side, under the same rule.

Callers need not know the layout: a label token is predicted at the last token before it on its path, wherever
that is, and label tokens are in the order of their rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from didact.data.encode import TokenizedExample

Ints = NDArray[np.int64]
Span = tuple[int, int]
Run = tuple[int, list[Span]]  # length of a prefix that is run once, and the rows of each tree after it


@dataclass(frozen=True)
class Packing:
    """When rows share a prefix or a physical row.

    Attributes:
        attention: width at which attention costs as much as the rest of a layer, in tokens (about six times
            the hidden size). A branch joins a tree where that costs less than a row of its own: masked
            attention between branches is still computed.
        share: shortest prefix that is worth a custom mask.
        pack: put short trees side by side into one physical row, as wide as the widest of the batch, where that
            saves an eighth of the rows. Measured with rows sorted by length it costs nothing and gives up to a third.
    """

    attention: int = 768
    share: int = 8
    pack: bool = True

    def joins(self, width: int, shared: int, own: int, past: int = 0) -> bool:
        """Whether a row of `shared + own` tokens joins a tree of `width` tokens that holds the shared ones."""
        separate = self.cost(width, past) + self.cost(shared + own, past)
        return shared >= self.share and self.cost(width + own, past) < separate

    def cost(self, width: int, past: int = 0) -> int:
        """Cost of a physical row after `past` cached tokens, in token pairs of attention."""
        return width * (self.attention + past + width)


class Path(NamedTuple):
    """One row in a tree: its number, and the index of each token it reads."""

    row: int
    spots: Ints


class Tree(NamedTuple):
    """One physical row: token ids, positions and reaches `(T,)`, and the paths of the rows in it."""

    ids: Ints
    position: Ints
    reach: Ints
    paths: tuple[Path, ...]

    @property
    def width(self) -> int:
        """Number of physical tokens."""
        return len(self.ids)

    @property
    def stem(self) -> int:
        """Number of leading tokens that all its paths read."""
        return int((self.reach == self.width).cumprod().sum())

    def renumbered(self, first: int) -> Tree:
        """The same with `first` added to the number of every row."""
        return self._replace(paths=tuple(Path(p.row + first, p.spots) for p in self.paths))

    def below(self, depth: int) -> Tree:
        """The subtrees below the first `depth` tokens, which all its paths share. Positions stay."""
        return Tree(
            self.ids[depth:],
            self.position[depth:],
            self.reach[depth:] - depth,
            tuple(Path(p.row, p.spots[depth:] - depth) for p in self.paths),
        )


def read(row: TokenizedExample) -> tuple[int, ...]:
    """The tokens a causal model reads of a row: all but the last, which is only a label."""
    return (row.prompt + row.completion)[:-1]


def trees(rows: Sequence[TokenizedExample], packing: Packing | None) -> list[Tree]:
    """Lay out rows in as few tokens as their shared prefixes allow; without a packing, one tree per row.

    The paths of a row are numbered by its place in `rows`.
    """
    tokens = [np.asarray(read(r), dtype=np.int64) for r in rows]
    if packing is None:
        return [_grow([i], tokens, [0]) for i in range(len(rows))]
    order, common = _sorted(rows, tokens)
    spans = _joined([len(tokens[i]) for i in order], common, packing)
    return [_grow(order[a:b], tokens, common[a:b]) for a, b in spans]


class Branches(NamedTuple):
    """Trees that all start with the same `prefix`, which is run once (it may be empty)."""

    prefix: tuple[int, ...]
    trees: list[Tree]


def plan(rows: Sequence[TokenizedExample], packing: Packing | None, prefix: int = 64) -> list[Branches]:
    """Lay out rows for scoring: trees whose branches share a mask, and common prefixes that are run only once.

    Args:
        rows: any rows; equal beginnings are found by sorting their tokens.
        packing: when branches join a tree; None if the model takes no tree mask (all trees are chains).
        prefix: fewest tokens of a prefix that is run by itself, and the overhead of the pass for it, in tokens. No
            label is predicted inside one.
    """
    if not rows:
        return []
    tokens = [np.asarray(read(r), dtype=np.int64) for r in rows]
    order, common = _sorted(rows, tokens)
    # Only tokens before the one that predicts a row's first label may be cached.
    free = np.array([max(len(rows[i].prompt) - 1, 0) for i in order])
    plot = _Plot([len(tokens[i]) for i in order], np.array(common), free, packing, prefix)
    alone: list[Tree] = []
    out: list[Branches] = []
    for depth, spans in plot.best(0, len(order))[1]:
        grown = [_grow(order[a:b], tokens, common[a:b]) for a, b in spans]
        if depth:
            out.append(Branches(tuple(grown[0].ids[:depth].tolist()), [t.below(depth) for t in grown]))
        else:
            alone += grown
    return ([Branches((), alone)] if alone else []) + out


def packed(group: Sequence[Tree]) -> list[Tree]:
    """Trees side by side in rows no wider than the widest of them, first fit, widest first."""
    room = max((t.width for t in group), default=0)
    bins: list[list[Tree]] = []
    free: list[int] = []
    for tree in sorted(group, key=lambda t: -t.width):
        at = next((i for i, space in enumerate(free) if space >= tree.width), None)
        if at is None:
            bins.append([])
            free.append(room)
            at = len(bins) - 1
        bins[at].append(tree)
        free[at] -= tree.width
    return [_side_by_side(b) for b in bins]


def _sorted(rows: Sequence[TokenizedExample], tokens: Sequence[Ints]) -> tuple[list[int], list[int]]:
    """Rows in lexicographic, hence depth-first, order, and how many leading tokens each shares with the one before."""
    order = sorted(range(len(rows)), key=lambda i: (read(rows[i]), i))
    return order, [0, *(_shared(tokens[i], tokens[j]) for i, j in itertools.pairwise(order))]


def _shared(a: Ints, b: Ints) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _joined(lengths: Sequence[int], common: Sequence[int], packing: Packing | None, past: int = 0) -> list[Span]:
    """Spans of sorted rows that form one tree each, below their first `past` tokens."""
    spans: list[Span] = []
    width = 0
    for at, (length, shared) in enumerate(zip(lengths, common, strict=True)):
        own = length - shared
        if spans and packing is not None and packing.joins(width, shared - past, own, past):
            spans[-1] = (spans[-1][0], at + 1)
            width += own
        else:
            spans.append((at, at + 1))
            width = length - past
    return spans


class _Plot(NamedTuple):
    """Sorted rows: their lengths, the prefix each shares with the one before, and how much of each may be cached."""

    lengths: list[int]
    common: Ints
    free: Ints
    packing: Packing | None
    prefix: int

    def best(self, first: int, last: int) -> tuple[int, list[Run]]:
        """The least cost of rows `first..last`, and its runs: trees alone, trees after a common prefix that is run
        once, or the best of each part if the rows are cut wherever they share least."""
        if last - first == 1:
            return self._trees(first, last, 0)
        options = [self._trees(first, last, 0)]
        edges = self.common[first + 1 : last]
        depth = int(min(edges.min(), self.free[first:last].min()))
        if depth >= self.prefix:
            options.append(self._trees(first, last, depth))
        # Depths count in units of 16 tokens, so that the recursion is at most context / 16 calls deep.
        cuts = np.flatnonzero(edges // 16 == edges.min() // 16) + first + 1
        if len(cuts) + 1 < last - first:
            parts = [self.best(a, b) for a, b in zip([first, *cuts], [*cuts, last], strict=True)]
            options.append((sum(cost for cost, _ in parts), [run for _, runs in parts for run in runs]))
        return min(options, key=lambda f: f[0])

    def _trees(self, first: int, last: int, past: int) -> tuple[int, list[Run]]:
        common = [0, *self.common[first + 1 : last].tolist()]
        spans = [(first + a, first + b) for a, b in _joined(self.lengths[first:last], common, self.packing, past)]
        rule = self.packing or Packing()
        widths = (
            self.lengths[a] - past + sum(self.lengths[a + 1 : b]) - int(self.common[a + 1 : b].sum()) for a, b in spans
        )
        cost = sum(rule.cost(width, past) for width in widths)
        return cost + (rule.cost(past) + self.prefix * rule.attention if past else 0), [(past, spans)]


def _grow(order: Sequence[int], tokens: Sequence[Ints], common: Iterable[int]) -> Tree:
    """Build the tree of sorted rows; row k shares `common[k]` leading tokens with row k - 1."""
    ids, positions = [tokens[order[0]][:0]], [tokens[order[0]][:0]]
    spots, width, paths = np.zeros(0, dtype=np.int64), 0, []
    cuts: list[tuple[Ints, int]] = []
    for k, (i, shared) in enumerate(zip(order, common, strict=True)):
        shared = shared if k else 0
        new = tokens[i][shared:]
        cuts.append((spots[shared:], width))
        spots = np.concatenate([spots[:shared], np.arange(width, width + len(new))])
        ids.append(new)
        positions.append(np.arange(shared, len(tokens[i])))
        width += len(new)
        paths.append(Path(i, spots))
    reach = np.full(width, width, dtype=np.int64)
    for cut, end in cuts:  # tokens from `end` on do not attend to what was cut off there
        reach[cut] = end
    return Tree(np.concatenate(ids), np.concatenate(positions), reach, tuple(paths))


def _side_by_side(group: Sequence[Tree]) -> Tree:
    if len(group) == 1:
        return group[0]
    starts = np.cumsum([0, *(t.width for t in group[:-1])])
    paths = [Path(p.row, p.spots + at) for at, t in zip(starts, group, strict=True) for p in t.paths]
    return Tree(
        np.concatenate([t.ids for t in group]),
        np.concatenate([t.position for t in group]),
        np.concatenate([t.reach + at for at, t in zip(starts, group, strict=True)]),
        tuple(paths),
    )
