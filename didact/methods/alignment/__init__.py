"""Make the model do what people prefer."""

from didact.methods.alignment.d2o import d2o
from didact.methods.alignment.mcts_dpo import mcts_dpo
from didact.methods.alignment.spin import spin

__all__ = ["d2o", "mcts_dpo", "spin"]
