"""Which weights of a decoder make queries, keys and values, so that those alone can be trained.

Where one matrix makes all three (GPT-2, GPT-NeoX, Bloom, Phi-3), a part is a slice of it, told by a mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


def layers(module: nn.Module) -> dict[int, nn.Module]:
    """The attention layers of a decoder, by their place.

    Raises:
        UserError: they are not found, as in models without attention.
    """
    found: dict[int, nn.Module] = {}
    for m in module.modules():
        if type(m).__name__.endswith("Attention") and isinstance(at := getattr(m, "layer_idx", None), int):
            found[at] = m
    config: Any = getattr(module, "config", None)
    count = getattr(config.get_text_config() if config is not None else None, "num_hidden_layers", None)
    if not found or sorted(found) != list(range(count or len(found))):
        raise UserError(f"no attention layers are found in a {type(module).__name__}: use a decoder as llama or gpt2")
    return found


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
    found = layers(model.module)
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


def blocks(module: nn.Module) -> list[nn.Module]:
    """The residual blocks of a decoder, each around one attention layer.

    Raises:
        UserError: they are not found.
    """
    within = list(layers(module).values())
    for rows in module.modules():
        mine = list(rows) if isinstance(rows, nn.ModuleList) and len(rows) == len(within) else []
        if mine and all(any(m is a for m in block.modules()) for block, a in zip(mine, within, strict=True)):
            return mine
    raise UserError(f"no residual blocks are found in a {type(module).__name__}: use a decoder as llama or gpt2")
