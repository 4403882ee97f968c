"""Which weights of a decoder make queries, keys and values, so that those alone can be trained.

Where one matrix makes all three (GPT-2, GPT-NeoX, Bloom, Phi-3), a part is a slice of it, told by a mask.
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
    """`all` weights; or letters of q, k, v, of every layer or of one: `kv`, `v@middle`, `qk@3`.

    Raises:
        UserError: it is none of these, or the model's projections are not found.
    """
    letters, at, place = which.partition("@")
    if which == "all":
        return [Part(name, p) for name, p in model.module.named_parameters()]
    if not letters or set(letters) - set("qkv") or (at and not (place in PLACES or place.isdigit())):
        raise UserError(
            f"{which}: which weights are trained is all, or letters of q, k, v, and perhaps a layer: kv@middle"
        )
    found = dict(enumerate(insert.attentions(model.module)))
    if at:
        number = {"first": 0, "middle": len(found) // 2, "last": len(found) - 1}.get(place)
        number = int(place) if number is None else number
        if number not in found:
            raise UserError(f"{which}: the model has the layers 0 to {len(found) - 1}")
        found = {number: found[number]}
    return [part for number, layer in found.items() for part in _of_layer(layer, letters, number)]


def _of_layer(layer: nn.Module, letters: str, number: int) -> list[Part]:
    own = dict(layer.named_modules())
    out = []
    for letter in letters:
        name = next((n for n in SEPARATE[letter] if n in own), None)
        if name is not None:
            out += [Part(f"{number}.{name}.{n}", p) for n, p in own[name].named_parameters()]
    if out:
        return out
    for name in ("c_attn", "query_key_value", "qkv_proj"):
        if name in own:
            masks = {n: _slices(layer, name, p, letters, n) for n, p in own[name].named_parameters()}
            return [Part(f"{number}.{name}.{n}", p, masks[n]) for n, p in own[name].named_parameters()]
    raise UserError(
        f"the queries, keys and values of a {type(layer).__name__} are not found: train all, or use a llama or gpt2"
    )


def _slices(layer: Any, name: str, weight: Tensor, letters: str, kind: str) -> Tensor:
    """1 where a fused weight or bias makes one of these letters."""
    turned = name == "c_attn" and kind == "weight"  # GPT-2 holds matrices as inputs by outputs
    size = weight.shape[1] if turned else weight.shape[0]
    if name == "query_key_value":
        if not type(layer).__name__.startswith(INTERLEAVED):
            raise UserError(f"how a {type(layer).__name__} lays out its fused projection is not known: train all")
        each = size // (3 * (getattr(layer, "num_heads", None) or layer.config.num_attention_heads))
        rows = torch.arange(size) // each % 3
    else:
        groups = getattr(layer, "num_key_value_groups", 1)
        kv = size // (groups + 2)
        rows = (torch.arange(size) >= size - 2 * kv).long() + (torch.arange(size) >= size - kv).long()
    line = torch.zeros(size)
    for letter in letters:
        line[rows == "qkv".index(letter)] = 1.0
    line = line.to(weight)
    return line.expand_as(weight) if turned or weight.dim() == 1 else line[:, None].expand_as(weight)


def values(layer: nn.Module, states: Tensor) -> Tensor:
    """The values `(B, T, heads of values * size)` that an attention layer makes of its input `(B, T, D)`."""
    total: Tensor | None = None
    for part in _of_layer(layer, "v", 0):
        weight = part.weight if part.mask is None else part.weight[part.mask > 0]
        if part.weight.dim() == 1:
            total = weight if total is None else total + weight
            continue
        turned = part.name.split(".")[1] == "c_attn"
        matrix = weight.view(states.shape[-1], -1) if turned else weight.view(-1, states.shape[-1]).T
        total = states @ matrix if total is None else total + states @ matrix
    assert total is not None
    return total


def output(layer: nn.Module, mixed: Tensor) -> Tensor:
    """What an attention layer's last projection makes of its heads `(B, T, heads * size)`, without its bias.

    Raises:
        UserError: the projection is not found.
    """
    for name in ("o_proj", "c_proj", "out_proj", "dense"):
        found = getattr(layer, name, None)
        if isinstance(found, nn.Module):
            weight: Any = found.weight
            return mixed @ (weight if name == "c_proj" else weight.T)
    raise UserError(f"the output projection of a {type(layer).__name__} is not found: use a llama or gpt2")
