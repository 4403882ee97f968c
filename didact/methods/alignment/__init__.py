"""Make the model do what people prefer."""

from didact.methods.alignment.d2o import d2o
from didact.methods.alignment.mcts_dpo import mcts_dpo
from didact.methods.alignment.spin import spin
from didact.methods.alignment.tool_rft import tool_rft

__all__ = ["d2o", "mcts_dpo", "spin", "tool_rft"]
