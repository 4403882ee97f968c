"""What the command line does: train, score, try. Each verb takes plain values and returns plain values."""

from didact.verbs.claiming import claim
from didact.verbs.comparing import Comparison, comparison, comparison_plan
from didact.verbs.job import prepare
from didact.verbs.plan import dry_run
from didact.verbs.running import run
from didact.verbs.saved import answers, evaluate

__all__ = ["Comparison", "answers", "claim", "comparison", "comparison_plan", "dry_run", "evaluate", "prepare", "run"]
