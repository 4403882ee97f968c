"""Probe arms, without a model: a linear probe of vectors on disk, against one of vectors in memory."""

from __future__ import annotations

from typing import Any

import torch

from bench import problems
from didact.evaluate import probes
from didact.models import hidden

WIDTH, CLASSES, AT_ONCE = 4_096, 17, 1_024
CONFIG = probes.ProbeConfig(epochs=1, rows=1_024)


def _vectors(start: int, n: int, labels: torch.Tensor) -> torch.Tensor:
    """Stand-ins for hidden states at these positions: noise plus the label."""
    vectors = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(start))
    vectors[torch.arange(n), labels] += 4
    return vectors


def _accuracy(read: probes.Read, labels: torch.Tensor) -> float:
    parts = probes.split(range(len(labels)), 0.05, 0.05)
    predicted = probes.classify(read, {"label": labels}, parts, CONFIG)["label"]
    return float((predicted == labels[parts.test]).double().mean())


def _labels(n: int) -> torch.Tensor:
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(0))


def stored(n: int = 200_000) -> dict[str, Any]:
    """Vectors streamed to disk in bfloat16 and read from there; n = 1,000,000 takes 8 GB of disk."""
    labels = _labels(n)

    def work() -> float:
        store = hidden.Store.create(None, {0: WIDTH}, n, "bfloat16")
        for start in range(0, n, AT_ONCE):
            batch = labels[start : start + AT_ONCE]
            store.put(0, start, _vectors(start, len(batch), batch))
        return _accuracy(lambda index: store.take(index, 0), labels)

    return problems.measured(work, n)


def held(n: int = 200_000) -> dict[str, Any]:
    """All vectors in one float32 tensor, as in notebooks."""
    labels = _labels(n)

    def work() -> float:
        vectors = torch.empty(n, WIDTH)
        for start in range(0, n, AT_ONCE):
            batch = labels[start : start + AT_ONCE]
            vectors[start : start + AT_ONCE] = _vectors(start, len(batch), batch)
        return _accuracy(vectors.__getitem__, labels)

    return problems.measured(work, n)
