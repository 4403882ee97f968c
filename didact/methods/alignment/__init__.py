"""Make the model do what people prefer."""

from didact.methods.alignment.context_preference import context_preference
from didact.methods.alignment.d2o import d2o
from didact.methods.alignment.genarm import genarm
from didact.methods.alignment.hindsight import hindsight
from didact.methods.alignment.ilf import ilf
from didact.methods.alignment.infalign import infalign
from didact.methods.alignment.mcts_dpo import mcts_dpo
from didact.methods.alignment.phf import phf
from didact.methods.alignment.reward_augmented import reward_augmented
from didact.methods.alignment.spin import spin
from didact.methods.alignment.tool_rft import tool_rft

__all__ = [
    "context_preference",
    "d2o",
    "genarm",
    "hindsight",
    "ilf",
    "infalign",
    "mcts_dpo",
    "phf",
    "reward_augmented",
    "spin",
    "tool_rft",
]
