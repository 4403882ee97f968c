"""The work of the command line: advise, train, score, try. Each verb takes plain values and returns plain values.

A verb is imported when it is first used, after `early` has checked its request: `advise` and refusals need no torch.
"""

import functools
import importlib
from typing import TYPE_CHECKING, Any

from didact.requests import Comparison

if TYPE_CHECKING:
    from didact.verbs.claiming import claim
    from didact.verbs.comparing import comparison, comparison_plan
    from didact.verbs.job import prepare
    from didact.verbs.merging import merge
    from didact.verbs.plan import dry_run
    from didact.verbs.planning import Planned, planned
    from didact.verbs.preparing import Preparation, prepare_corpus
    from didact.verbs.pushing import push
    from didact.verbs.running import run
    from didact.verbs.saved import Chat, answers, evaluate

__all__ = [
    "Chat",
    "Comparison",
    "Planned",
    "Preparation",
    "answers",
    "claim",
    "comparison",
    "comparison_plan",
    "dry_run",
    "evaluate",
    "merge",
    "planned",
    "prepare",
    "prepare_corpus",
    "push",
    "run",
]
MODULES = {
    "claim": "claiming", "comparison": "comparing", "comparison_plan": "comparing",
    "prepare": "job", "dry_run": "plan", "run": "running", "Chat": "saved", "answers": "saved", "evaluate": "saved",
    "merge": "merging", "push": "pushing", "Planned": "planning", "planned": "planning",
    "Preparation": "preparing", "prepare_corpus": "preparing",
}  # fmt: skip


EARLY = {
    "run": "run", "dry_run": "run", "prepare": "run", "comparison": "comparison", "comparison_plan": "comparison",
    "evaluate": "evaluation", "answers": "answers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return functools.partial(_call_checked, name) if name in EARLY else _verb(name)


def _verb(name: str) -> Any:
    return getattr(importlib.import_module(f"didact.verbs.{MODULES[name]}"), name)


def _call_checked(name: str, *args: Any, **options: Any) -> Any:
    """Check the request without torch, then call the verb."""
    getattr(importlib.import_module("didact.verbs.early"), EARLY[name])(*args, **options)
    return _verb(name)(*args, **options)
