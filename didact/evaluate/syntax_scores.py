"""How close predicted trees are to the true ones, and two subspaces to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from didact.data import trees
from didact.data.trees import Code, Score
from didact.models.subspace import Subspace


def scores(predicted: Sequence[Code], true: Sequence[Code], official: bool = False) -> list[Score]:
    """Score the tree of each text, both trees decoded from their codes."""
    pairs = zip(predicted, true, strict=True)
    return [trees.score(trees.constituents(p), trees.constituents(t), official) for p, t in pairs]


def table(predicted: Sequence[Code], true: Sequence[Code]) -> dict[str, NDArray[np.float64]]:
    """`precision`, `recall` and `f1` of each text, `(n,)`; and `f1_spans`, of constituents of two tokens or more.

    If most tokens have a node of their own, the first three depend more on those than on how tokens are grouped.
    """
    columns = np.array(scores(predicted, true), dtype=float).reshape(-1, 3)
    wide = [[[c for c in trees.constituents(code) if c.last > c.first] for code in side] for side in (predicted, true)]
    spans = np.array([trees.score(p, t).f1 for p, t in zip(*wide, strict=True)])
    return dict(zip(Score._fields, columns.T, strict=True)) | {"f1_spans": spans}


def parts_right(predicted: Sequence[Code], true: Sequence[Code]) -> dict[str, float]:
    """Accuracy of the labels, and the share of pairs of heights that are ranked as they should by a margin of 1."""
    pairs = list(zip(predicted, true, strict=True))
    ranked = [0, 0]
    for p, t in pairs:
        d, heights = np.asarray(t.d), np.asarray(p.d)
        higher = d[:, None] > d
        ranked[0] += int(((heights[:, None] - heights >= 1) & higher).sum())
        ranked[1] += int(higher.sum())
    c = [a == b for p, t in pairs for a, b in zip(p.c, t.c, strict=True)]
    u = [a == b for p, t in pairs for a, b in zip(p.u, t.u, strict=True)]
    return {
        "labels": float(np.mean(c)),
        "leaf_labels": float(np.mean(u)),
        "pairs_ranked": ranked[0] / max(1, ranked[1]),
    }


def recall_by_label(predicted: Sequence[Code], true: Sequence[Code]) -> dict[str, dict[str, float]]:
    """Recall of the constituents of each non-terminal, and how many there are; commonest first."""
    count: dict[str, list[int]] = {}
    for p, t in zip(predicted, true, strict=True):
        unmatched = Counter(trees.constituents(p))
        for constituent in trees.constituents(t):
            entry = count.setdefault(constituent.label, [0, 0])
            entry[1] += 1
            if unmatched[constituent] > 0:
                unmatched[constituent] -= 1
                entry[0] += 1
    ordered = sorted(count.items(), key=lambda item: -item[1][1])
    return {label: {"recall": hit / n, "n": n} for label, (hit, n) in ordered}


def angle(a: Subspace, b: Subspace) -> float:
    """Mean principal angle between two subspaces, in degrees: 0 if one is inside the other."""
    angles = linalg.subspace_angles(a.p.detach().double().numpy(), b.p.detach().double().numpy())
    return float(np.degrees(angles).mean())
