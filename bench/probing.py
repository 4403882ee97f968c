"""Probe arms, without a model: a linear probe of vectors on disk, against one of vectors in memory."""

from __future__ import annotations

from typing import Any

import torch

from bench import problems
from didact.evaluate import probes
from didact.models import hidden

WIDTH, CLASSES, AT_ONCE = 4_096, 17, 1_024
CONFIG = probes.ProbeConfig(epochs=1, rows=1_024)


def _dumped(start: int, n: int, labels: torch.Tensor) -> torch.Tensor:
    """What a model would have given for these positions: noise, and the label in it."""
    vectors = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(start))
    vectors[torch.arange(n), labels] += 4
    return vectors


def _probed(read: probes.Read, labels: torch.Tensor) -> float:
    parts = probes.split(range(len(labels)), 0.05, 0.05)
    said = probes.classify(read, {"label": labels}, parts, CONFIG)["label"]
    return float((said == labels[parts.test]).double().mean())


def _labels(n: int) -> torch.Tensor:
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(0))


def stored(n: int = 200_000) -> dict[str, Any]:
    """Streamed to disk in bfloat16, and read from there; n = 1,000,000 is 8 GB of disk."""
    labels = _labels(n)

    def work() -> float:
        store = hidden.Store.create(None, {0: WIDTH}, n, "bfloat16")
        for start in range(0, n, AT_ONCE):
            own = labels[start : start + AT_ONCE]
            store.put(0, start, _dumped(start, len(own), own))
        return _probed(lambda index: store.take(index, 0), labels)

    return problems.measured(work, n)


def held(n: int = 200_000) -> dict[str, Any]:
    """All in one float32 tensor, as notebooks have it."""
    labels = _labels(n)

    def work() -> float:
        vectors = torch.empty(n, WIDTH)
        for start in range(0, n, AT_ONCE):
            own = labels[start : start + AT_ONCE]
            vectors[start : start + AT_ONCE] = _dumped(start, len(own), own)
        return _probed(vectors.__getitem__, labels)

    return problems.measured(work, n)
