"""The query, key and value projections of a decoder, so that only those can be trained.

Where one matrix computes all three (GPT-2, GPT-NeoX, Bloom, Phi-3), a part is a slice of it, given by a mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from didact.models import insert
from didact.models.model import Model
from didact.types import UserError

SEPARATE = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}
PLACES = ("first", "middle", "last")
INTERLEAVED = ("GPTNeoX", "Bloom")  # rows of `query_key_value` are (heads, 3, size)


class Part(NamedTuple):
    """A weight, and which of its entries belong to the part (None: all)."""

    name: str
    weight: nn.Parameter
    mask: Tensor | None = None


def parts(model: Model, which: str) -> list[Part]:
    """Return `all` weights, or projections by letter (q, k, v), in every layer or one: `kv`, `v@middle`, `qk@3`.

    Raises:
        UserError: `which` is none of these, or the model's projections are not found.
    """
    letters, at, place = which.partition("@")
    if which == "all":
        return [Part(name, p) for name, p in model.module.named_parameters()]
    if not letters or set(letters) - set("qkv") or (at and not (place in PLACES or place.isdigit())):
        raise UserError(
            f"{which}: weights to train must be all, or letters of q, k, v with an optional layer: kv, kv@middle, qk@3"
        )
    layers = dict(enumerate(insert.attentions(model.module)))
    if at:
        number = {"first": 0, "middle": len(layers) // 2, "last": len(layers) - 1}.get(place)
        number = int(place) if number is None else number
        if number not in layers:
            raise UserError(f"{which}: the model has layers 0 to {len(layers) - 1}")
        layers = {number: layers[number]}
    return [part for number, layer in layers.items() for part in _of_layer(layer, letters, number)]


def _of_layer(layer: nn.Module, letters: str, number: int) -> list[Part]:
    children = dict(layer.named_modules())
    out = []
    for letter in letters:
        name = next((n for n in SEPARATE[letter] if n in children), None)
        if name is not None:
            out += [Part(f"{number}.{name}.{n}", p) for n, p in children[name].named_parameters()]
    if out:
        return out
    for name in ("c_attn", "query_key_value", "qkv_proj"):
        if name in children:
            masks = {n: _slices(layer, name, p, letters, n) for n, p in children[name].named_parameters()}
            return [Part(f"{number}.{name}.{n}", p, masks[n]) for n, p in children[name].named_parameters()]
    raise UserError(
        f"no query, key and value projections found in a {type(layer).__name__}: train all, or use a llama or gpt2"
    )


def _slices(layer: Any, name: str, weight: Tensor, letters: str, kind: str) -> Tensor:
    """The mask of a fused weight or bias: 1 where it computes one of these letters."""
    transposed = name == "c_attn" and kind == "weight"  # GPT-2 holds matrices as inputs by outputs
    size = weight.shape[1] if transposed else weight.shape[0]
    if name == "query_key_value":
        if not type(layer).__name__.startswith(INTERLEAVED):
            raise UserError(f"unknown layout of the fused projection of a {type(layer).__name__}: train all weights")
        head_size = size // (3 * (getattr(layer, "num_heads", None) or layer.config.num_attention_heads))
        rows = torch.arange(size) // head_size % 3
    else:
        groups = getattr(layer, "num_key_value_groups", 1)
        kv = size // (groups + 2)
        rows = (torch.arange(size) >= size - 2 * kv).long() + (torch.arange(size) >= size - kv).long()
    selected = torch.zeros(size)
    for letter in letters:
        selected[rows == "qkv".index(letter)] = 1.0
    selected = selected.to(weight)
    return selected.expand_as(weight) if transposed or weight.dim() == 1 else selected[:, None].expand_as(weight)


def values(layer: nn.Module, states: Tensor) -> Tensor:
    """Compute an attention layer's values `(B, T, value heads * size)` from its input `(B, T, D)`."""
    total: Tensor | None = None
    for part in _of_layer(layer, "v", 0):
        weight = part.weight if part.mask is None else part.weight[part.mask > 0]
        if part.weight.dim() == 1:
            total = weight if total is None else total + weight
            continue
        transposed = part.name.split(".")[1] == "c_attn"
        matrix = weight.view(states.shape[-1], -1) if transposed else weight.view(-1, states.shape[-1]).T
        total = states @ matrix if total is None else total + states @ matrix
    assert total is not None
    return total


def output(layer: nn.Module, mixed: Tensor) -> Tensor:
    """Apply an attention layer's output projection to its heads `(B, T, heads * size)`, without its bias.

    Raises:
        UserError: the projection is not found.
    """
    for name in ("o_proj", "c_proj", "out_proj", "dense"):
        projection = getattr(layer, name, None)
        if isinstance(projection, nn.Module):
            weight: Any = projection.weight
            return mixed @ (weight if name == "c_proj" else weight.T)
    raise UserError(f"no output projection found in a {type(layer).__name__}: use a llama or gpt2")
