"""What people use today, to compare with."""

from didact.methods.baselines.dpo import dpo
from didact.methods.baselines.few_shot import few_shot
from didact.methods.baselines.kto import kto
from didact.methods.baselines.sft import sft

__all__ = ["dpo", "few_shot", "kto", "sft"]
