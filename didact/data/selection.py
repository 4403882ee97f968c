"""Select and order records: classes from easy to hard, and the top of a ranking in every group. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np


def mean_rank(measures: Sequence[Sequence[float]]) -> list[float]:
    """The mean of every record's ranks by several measures, each a list over the records; ties share a rank."""
    ranks = []
    for values in np.asarray(measures, dtype=float):
        ordered = np.sort(values)
        ranks.append(np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right"))
    return [float(x) for x in np.mean(ranks, axis=0) / 2]


def classes(score: Sequence[float], count: int) -> list[list[int]]:
    """Split records into `count` classes of equal size, lowest scores first; ties keep their order."""
    if not count:
        return []
    return [part.tolist() for part in np.array_split(np.argsort(np.asarray(score), kind="stable"), count)]


def top(
    score: Sequence[float],
    ratio: float,
    groups: Sequence[Hashable],
    trim: float = 0.0,
    suspect: Sequence[float] | None = None,
) -> list[int]:
    """Select `floor(n ratio)` records of every group of n, highest scores first.

    Args:
        score: score of every record.
        ratio: in [0, 1].
        groups: group of every record; groups come in order of first appearance.
        trim: share of every group left out beforehand, the highest in `suspect`.
        suspect: the score by default.
    """
    suspicion = score if suspect is None else suspect
    out: list[int] = []
    for group in dict.fromkeys(groups):
        members = sorted((i for i, g in enumerate(groups) if g == group), key=lambda i: (-suspicion[i], i))
        ranked = sorted(members[math.floor(trim * len(members) + 1e-9) :], key=lambda i: (-score[i], i))
        out += ranked[: math.floor(ratio * len(members) + 1e-9)]
    return out
