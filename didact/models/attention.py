"""Recording of attention layers in a forward pass: queries, keys, values, scores before the softmax, outputs.

transformers' layers call one function of queries, keys, values and a mask; while recording, it is their own eager one,
which computes the scores.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from didact.models import insert
from didact.types import UserError

NAME = "didact_recording"


class LayerRecord(NamedTuple):
    """One layer in one pass: `query (B, H, T, d)`, `key` and `value (B, H, S, d)` repeated for the heads that share
    them, `mask (B, 1, T, S)` that is added to the scores, output of the heads `(B, T, H, d)`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    cap: float | None
    heads: Tensor

    def scores(self, last: int | None = None) -> Tensor:
        """Scores before the softmax and the mask, `(B, H, T, S)`; of the `last` positions only, if given."""
        scores = self.query[:, :, -(last or 0) :] @ self.key.transpose(-1, -2) * self.scale
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def weights(self) -> Tensor:
        """Weights of the last position, after the softmax: `(B, H, S)`."""
        scores = self.scores(1)[:, :, 0]
        return (scores if self.mask is None else scores + self.mask[:, :, -1]).softmax(-1)


@dataclass
class Tape:
    """The record: `passes[i]` are the layers of the i-th pass, `outputs[i]` the output `(B, T, D)` that each added to
    the residual stream."""

    passes: list[list[LayerRecord]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[Tape]:
    """Record every pass of a decoder inside the block.

    Raises:
        UserError: its attention layers are not found, are fused, or do not use transformers' common interface.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layers, tape = insert.attentions(module), Tape()
    index_of = {id(layer): i for i, layer in enumerate(layers)}
    for layer in layers:
        if not hasattr(sys.modules[type(layer).__module__], "eager_attention_forward"):
            raise UserError(f"the attention of a {type(layer).__name__} cannot be recorded: use a llama or gpt2")

    def attend(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        heads, weights = _eager(layer)(layer, query, key, value, mask, **kwargs)
        if index_of[id(layer)] == 0:
            tape.passes.append([])
        groups = query.shape[1] // key.shape[1]
        keys, values = (x.detach().repeat_interleave(groups, 1) for x in (key, value))
        scale = kwargs.get("scaling")
        tape.passes[-1].append(
            LayerRecord(
                query.detach(), keys, values, mask, 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
                kwargs.get("softcap"), heads.detach(),
            )
        )  # fmt: skip
        return heads, weights

    def keep_output(layer: nn.Module, args: Any, output: Any) -> None:
        if index_of[id(layer)] == 0:
            tape.outputs.append([])
        tape.outputs[-1].append((output[0] if isinstance(output, tuple) else output).detach())

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
    configs: dict[int, Any] = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    implementations = [(config, config._attn_implementation) for config in configs.values()]
    with contextlib.ExitStack() as cleanup:
        for layer in layers:
            cleanup.callback(layer.register_forward_hook(keep_output).remove)
        for config, implementation in implementations:
            cleanup.callback(setattr, config, "_attn_implementation", implementation)
            config._attn_implementation = NAME
        yield tape


def _eager(layer: nn.Module) -> Any:
    """The eager function of a layer's own source file: some cap scores, some have sinks."""
    return sys.modules[type(layer).__module__].eager_attention_forward
