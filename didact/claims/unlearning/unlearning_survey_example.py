"""Examples of the survey's ways: npo's authors for those that change weights, reviews for the one that only asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from didact.claims.problem import Problem
from didact.claims.unlearning import npo_example

FIT: Mapping[str, Mapping[str, Any]] = {  # found on seed 1000; the papers' rates change nothing at this size
    "unlearning-survey": {"lr": 5e-4, "steps": 25, "rows": 16},
    "merging": {"lr": 3e-4, "steps": 30, "rows": 16},
    "kul": {"lr": 1e-4, "epochs": 20, "rows": 8},
    "llmu": {"lr": 2e-4, "steps": 40, "rows": 10},
    "eul": {"lr": 2e-3, "steps": 40, "rows": 10},
    "kga": {"lr": 3e-4, "steps": 40, "rows": 10},
    "adapter": {"lr": 1e-3, "steps": 30, "rows": 16},
}


def problem(
    seed: int, fit: str = "unlearning-survey", unseen: bool = False, retain: bool = True, **options: Any
) -> Problem:
    """A Llama that knows 14 authors, two of whom must go; `unseen` are authors no model was told of."""
    given = npo_example.problem(seed)
    data = {"forget": given.data["forget"]}
    if retain:
        data |= {"retain": given.data["retain"]}
    if unseen:
        data |= {"unseen": given.protocol["holdout"]}
    return Problem(model=given.model, data=data, options=options, fit=FIT.get(fit, {}), protocol=given.protocol)
