"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from didact.types import Schedule

DECAY_SHARE = 0.2  # share of a wsd run in which the rate falls


def factor(schedule: Schedule, step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak rate at `step` (0-based) of `steps`.

    Warm-up rises linearly: step i < warmup has (i + 1) / (warmup + 1). After it: constant; linear or
    cosine to zero at `steps`; wsd is constant and falls linearly to zero over the last fifth.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, 1 - progress)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "wsd":
        return min(1.0, max(0.0, (1 - progress) / DECAY_SHARE))
    return 1.0


def by_tokens(seen: float, warmup: float, end: float, floor: float = 0.1) -> float:
    """Share of the peak rate after `seen` tokens: linear warm-up, cosine to `floor` at `end` tokens, then constant.

    seen / warmup                                                        while seen < warmup
    floor + (1 - floor) (1 + cos(pi (seen - warmup) / (end - warmup))) / 2   up to end
    floor                                                                after it
    """
    if seen < warmup:
        return seen / warmup
    if seen >= end:
        return floor
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (seen - warmup) / (end - warmup)))


def ramped(seen: float, first: float, full: float, ramp: float) -> float:
    """Tokens of the batch drawn after `seen` tokens: linear from `first` to `full` over the first `ramp` tokens."""
    return first + (full - first) * min(1.0, seen / ramp) if ramp > 0 and first < full else full
