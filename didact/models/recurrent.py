"""Language models with the layers of `models.sequence` that transformers lacks, or runs token by token (RWKV)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from didact.models.model import Model
from didact.models.sequence import SequenceConfig, Stack

Layer = Literal["lstm", "gru", "fast-weights", "retnet", "rwkv", "hyena"]


class RecurrentConfig(PreTrainedConfig):
    """The configuration that shared code reads from a model."""

    model_type = "recurrent"


class RecurrentLM(nn.Module):
    """Embeddings, layers of one kind, a norm and a head; called like a causal transformers model, without a cache.

    Args:
        vocabulary: number of tokens.
        width: of an embedding and a layer.
        layers: number of layers.
        layer: their kind; `fast-weights` is linear attention with a feed-forward part.
        context: longest row in tokens.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, layer: Layer, context: int = 1024) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        config_class: Any = RecurrentConfig
        self.config = config_class(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, max_position_embeddings=context,
            spec=self.spec,
        )  # fmt: skip
        layer_config = SequenceConfig(mixer=layer, layers=1, width=width, heads=max(1, width // 16), positions="none")
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Stack(layer_config) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    @property
    def base_model(self) -> RecurrentLM:
        """Itself, which returns hidden states."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutputWithPast:
        """Return logits `(B, T, V)`; padding must be on the right, where no token sees it."""
        states = [self.embed(input_ids)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        states[-1] = self.norm(states[-1])
        return CausalLMOutputWithPast(logits=self.head(states[-1]), hidden_states=tuple(states))


def build(
    tokenizer: PreTrainedTokenizerBase, width: int, layers: int, layer: Layer, context: int = 1024, seed: int = 0
) -> Model:
    """Build a model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = RecurrentLM(len(tokenizer), width, layers, layer, context)
    return Model(module.eval(), tokenizer, "causal")
