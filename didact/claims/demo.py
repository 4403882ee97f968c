"""The example of `didact compare`: pairs of answers to a sorting task, and a model that gives both equally often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from didact.claims.alignment import hindsight
from didact.models.model import Model
from didact.types import Record
from didact.worlds.sorting import Sorting

SEED = 7
PAIRS = 600


@dataclass(frozen=True, kw_only=True)
class Example:
    """What the embedded comparison needs: `options` by method, `fit` for every arm."""

    arms: tuple[str, ...]
    model: Model
    records: Mapping[str, Sequence[Record]]
    budget: str
    lrs: tuple[float, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


def example() -> Example:
    """Four methods on a model of 60k weights; at this size the papers' rates and betas have no effect."""
    return Example(
        arms=("sft", "dpo", "kto", "hindsight"),
        model=hindsight.start(SEED, 300),
        records={"preference": Sorting(seed=SEED).pairs(1, PAIRS)},
        budget="60k-tokens",
        lrs=(3e-4, 1.2e-3, 5e-3),
        options={"hindsight": {"good": [hindsight.GOOD], "bad": [hindsight.BAD]}},
        fit={"rows": 16, "warmup": 0.1},
    )
