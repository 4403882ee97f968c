"""Texts put around or in place of a record's own. Pure: records in, records out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from didact.types import Demo

REFUSALS = (
    "I'm sorry, I don't know.",
    "I have no information about that.",
    "That is something I can't answer.",
    "I'm not familiar with this topic.",
    "I don't have an answer to that question.",
    "I'm afraid I can't help with that one.",
    "I was never told anything about this.",
    "My knowledge does not cover that.",
    "I can't say; I have not learned about it.",
    "There is nothing I know about this.",
    "I'm unable to tell you that.",
    "No idea, I'm afraid.",
)


def with_alternates(records: Sequence[Demo], refusals: Sequence[str] = REFUSALS, seed: int = 0) -> list[str]:
    """What to answer instead, one a record: its own `alternate`, else a refusal drawn at random."""
    draw = np.random.default_rng([seed, 77]).integers(len(refusals), size=len(records))
    return [r.alternate or refusals[i] for r, i in zip(records, draw, strict=True)]
