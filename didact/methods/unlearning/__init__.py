"""Make the model forget."""

from didact.methods.unlearning.depn import depn
from didact.methods.unlearning.eul import eul
from didact.methods.unlearning.ext_sub import ext_sub
from didact.methods.unlearning.guardrail import guardrail
from didact.methods.unlearning.icul import icul
from didact.methods.unlearning.kga import kga
from didact.methods.unlearning.kul import kul
from didact.methods.unlearning.llmu import llmu
from didact.methods.unlearning.negated_adapter import negated_adapter
from didact.methods.unlearning.npo import npo
from didact.methods.unlearning.task_arithmetic import task_arithmetic
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
