"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from didact.types import Schedule

DECAY_SHARE = 0.2  # of a wsd run


def factor(schedule: Schedule, step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak rate at `step` (0-based) of `steps`.

    Warm-up rises linearly: step i < warmup has (i + 1) / (warmup + 1). After it: constant; linear or
    cosine to zero at `steps`; wsd is constant and falls linearly to zero over the last fifth.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, 1 - done)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if schedule == "wsd":
        return min(1.0, max(0.0, (1 - done) / DECAY_SHARE))
    return 1.0
