"""Examples of the survey's methods: npo's authors, and a choice between two answers for the one that only prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from didact.claims.problem import Problem
from didact.claims.unlearning import npo_example
from didact.types import Demo

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
FIT: Mapping[str, Mapping[str, Any]] = {  # chosen on seed 1000; the papers' learning rates change nothing at this size
    "unlearning-survey": {"lr": 5e-4, "steps": 25, "rows": 16},
    "merging": {"lr": 3e-4, "steps": 30, "rows": 16},
    "kul": {"lr": 1e-4, "epochs": 20, "rows": 8},
    "llmu": {"lr": 2e-4, "steps": 40, "rows": 10},
    "eul": {"lr": 2e-3, "steps": 40, "rows": 10},
    "kga": {"lr": 3e-4, "steps": 40, "rows": 10},
    "adapter": {"lr": 1e-3, "steps": 30, "rows": 16},
}


def variant(fit: str, unseen: bool = False, retain: bool = True, **options: Any) -> Callable[[int], Problem]:
    """Return `problem(seed)` of one method: a Llama trained on 14 authors, two of them to be forgotten; `unseen` adds
    authors that no model was trained on."""

    def problem(seed: int) -> Problem:
        base = npo_example.problem(seed)
        data = {"forget": base.data["forget"]}
        data |= {"retain": base.data["retain"]} if retain else {}
        data |= {"unseen": base.protocol["holdout"]} if unseen else {}
        return dataclasses.replace(base, data=data, options=options, fit=FIT.get(fit, {}))

    return problem


problem = variant("unlearning-survey", ways=("graddiff", "npo", "whp", "task-arithmetic"))


def problem_icul(seed: int) -> Problem:
    """The example of in-context unlearning: which of two answers is the author's, as a choice."""
    base = variant("", right=2)(seed)
    return dataclasses.replace(base, data={k: [choice(d) for d in part] for k, part in base.data.items()}, protocol={})


def choice(d: Any) -> Demo:
    """Return a question with two choices, its answer and a wrong one."""
    return Demo(prompt=d.prompt, completion=d.completion, choices=[d.completion, (d.perturbed or [""])[0]])
