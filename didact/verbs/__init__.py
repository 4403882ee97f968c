"""What the command line does: teach, score, try. Each verb takes plain values and returns plain values."""

from didact.verbs.claiming import claim
from didact.verbs.comparing import comparison
from didact.verbs.job import prepare
from didact.verbs.plan import dry_run
from didact.verbs.running import run
from didact.verbs.saved import answers, evaluate

__all__ = ["answers", "claim", "comparison", "dry_run", "evaluate", "prepare", "run"]
