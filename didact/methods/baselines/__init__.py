"""What people use today, to compare with."""

from didact.methods.baselines.dpo import dpo
from didact.methods.baselines.sft import sft

__all__ = ["dpo", "sft"]
