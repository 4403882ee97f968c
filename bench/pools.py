"""Selection arms, without a model: vote-k over a pool of vectors against the published loop over its texts."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from bench import problems
from didact.data import annotation, retrieval

WIDTH, BUDGET, SMALL, LOOPED = 384, 100, 2000, 20


def _pool(n: int) -> Any:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n // 50, WIDTH)).astype(np.float32)
    drawn = centres[rng.integers(len(centres), size=n)] + rng.normal(size=(n, WIDTH)).astype(np.float32)
    return retrieval.unit(drawn)


def votek_ours(n: int = 100_000, approximate: bool = False) -> dict[str, Any]:
    """All of it; and how many of an index's neighbours are right, for some texts."""
    pool, graphs = _pool(n), list[Any]()

    def chosen(pool: Any, approximate: bool = False) -> list[int]:
        graphs[:] = [annotation.neighbours(pool, approximate=approximate)]
        return annotation.voted(graphs[0], BUDGET)

    told = problems.measured(lambda: chosen(pool, approximate), n)
    if approximate:
        some = np.random.default_rng(1).permutation(n)[:200]
        exact = retrieval.nearest(pool[some], pool, annotation.PAPER_K, some.tolist(), range(n)).positions
        found = graphs[0][some]
        told["overlap"] = float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact, found, strict=True)]))
    told["value"] = chosen(_pool(SMALL))
    return told


def votek_loop(n: int = 100_000) -> dict[str, Any]:
    """The neighbours of some texts, one at a time as the official code has it; its picks come on top and are left out.

    The selection it is compared by is whole, on a small pool.
    """
    from sklearn.metrics.pairwise import cosine_similarity

    pool = _pool(n)

    def votes(texts: Any, rows: int) -> dict[int, list[int]]:
        out = defaultdict(list)
        k = min(annotation.PAPER_K, round(0.05 * len(texts)))
        for i in range(rows):
            near = cosine_similarity(texts, texts[i : i + 1])[:, 0]
            near[i] = -np.inf
            for u in np.argsort(-near, kind="stable")[:k]:
                out[int(u)].append(i)
        return out

    told = problems.measured(lambda: len(votes(pool, LOOPED)), LOOPED)
    small = _pool(SMALL)
    voters, taken, seen = votes(small, SMALL), list[int](), defaultdict(int)
    while len(taken) < BUDGET:
        left = [u for u in range(SMALL) if u not in taken]
        score = {u: sum(10.0 ** -seen[v] for v in voters[u] if v not in taken) for u in left}
        top = max(score.values())
        taken.append(next(u for u in left if score[u] >= top - 1e-9))
        for v in voters[taken[-1]]:
            seen[v] += 1
    told["value"] = taken
    return told
