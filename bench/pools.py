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
    vectors = centres[rng.integers(len(centres), size=n)] + rng.normal(size=(n, WIDTH)).astype(np.float32)
    return retrieval.unit(vectors)


def votek_ours(n: int = 100_000, approximate: bool = False) -> dict[str, Any]:
    """The whole pool; with `approximate`, also the share of the index's neighbours that are exact, for some texts."""
    pool, graphs = _pool(n), list[Any]()

    def select(pool: Any, approximate: bool = False) -> list[int]:
        graphs[:] = [annotation.neighbours(pool, approximate=approximate)]
        return annotation.voted(graphs[0], BUDGET)

    result = problems.measured(lambda: select(pool, approximate), n)
    if approximate:
        sample = np.random.default_rng(1).permutation(n)[:200]
        exact = retrieval.nearest(pool[sample], pool, annotation.PAPER_K, sample.tolist(), range(n)).positions
        approx = graphs[0][sample]
        result["overlap"] = float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact, approx, strict=True)]))
    result["value"] = select(_pool(SMALL))
    return result


def votek_loop(n: int = 100_000) -> dict[str, Any]:
    """The neighbours of some texts, one at a time as in the official code; the time of its selection is left out.

    The selection that is compared with ours is complete, on a small pool.
    """
    from sklearn.metrics.pairwise import cosine_similarity

    pool = _pool(n)

    def votes(texts: Any, rows: int) -> dict[int, list[int]]:
        out = defaultdict(list)
        k = min(annotation.PAPER_K, round(0.05 * len(texts)))
        for i in range(rows):
            similarity = cosine_similarity(texts, texts[i : i + 1])[:, 0]
            similarity[i] = -np.inf
            for u in np.argsort(-similarity, kind="stable")[:k]:
                out[int(u)].append(i)
        return out

    result = problems.measured(lambda: len(votes(pool, LOOPED)), LOOPED)
    small = _pool(SMALL)
    voters, selected, covered = votes(small, SMALL), list[int](), defaultdict[int, int](int)
    while len(selected) < BUDGET:
        remaining = [u for u in range(SMALL) if u not in selected]
        score = {u: sum(10.0 ** -covered[v] for v in voters[u] if v not in selected) for u in remaining}
        top = max(score.values())
        selected.append(next(u for u in remaining if score[u] >= top - 1e-9))
        for v in voters[selected[-1]]:
            covered[v] += 1
    result["value"] = selected
    return result
