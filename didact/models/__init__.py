"""Load, build and wrap models; the label-token forward pass every method rests on."""

from didact.models.build import build, train_tokenizer
from didact.models.forward import Tokenwise, label_states, logits_of, row_logp, tokens
from didact.models.load import fingerprint, load
from didact.models.model import Model, copy_of, frozen

__all__ = [
    "Model",
    "Tokenwise",
    "build",
    "copy_of",
    "fingerprint",
    "frozen",
    "label_states",
    "load",
    "logits_of",
    "row_logp",
    "tokens",
    "train_tokenizer",
]
