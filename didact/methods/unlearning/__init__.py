"""Make the model forget."""

from didact.methods.unlearning.npo import npo
from didact.methods.unlearning.survey_context import guardrail, icul
from didact.methods.unlearning.survey_merge import ext_sub, negated_adapter, task_arithmetic
from didact.methods.unlearning.survey_optimise import depn, eul, kga, kul, llmu
from didact.methods.unlearning.unlearning_survey import unlearning_survey
from didact.methods.unlearning.whp import whp

__all__ = [
    "depn",
    "eul",
    "ext_sub",
    "guardrail",
    "icul",
    "kga",
    "kul",
    "llmu",
    "negated_adapter",
    "npo",
    "task_arithmetic",
    "unlearning_survey",
    "whp",
]
