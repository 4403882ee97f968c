"""Mixers inserted into a transformers decoder: modules whose output is added to that of some of its layers.

A mixer is a module `mixer(states (B, T, D), reading, layer) -> (B, T, D)`. It reads the output of a whole block, or the
input of a block's attention, and its result is added to that block's or that attention's output. Initialised at zero it
changes nothing until it is trained. `reading` has the tokens; `reading.remember(states)` returns the states of all
columns so far, so that a mixer that looks back works with a key/value cache: its states are one more layer of that
cache, reordered, repeated and cropped with the others.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from didact.models import opening
from didact.models.model import Model
from didact.types import UserError

Where = Literal["block", "attention"]
# By class name; a mixer's `spec` are the arguments of its constructor, as JSON.
MIXERS = {"NGramHead": "didact.models.ngram_heads", "Momentum": "didact.models.momentum"}
# Our own decoders, which transformers cannot build from a configuration.
DECODERS = {"recurrent": "didact.models.recurrent:RecurrentLM"}


class Mixer(Protocol):
    """A module that can be inserted: an `nn.Module` with a `spec`."""

    spec: dict[str, Any]

    def __call__(self, states: Tensor, reading: Reading, layer: nn.Module) -> Tensor:
        """Return what is added at the columns of `states (B, T, D)`; `layer` is the block or attention it sits at."""


@dataclass(frozen=True)
class Place:
    """A mixer's position: the block, counted from 0, and whether it adds to the block's output or its attention's."""

    at: int
    where: Where = "block"


@dataclass
class Reading:
    """The tokens of one forward pass and the columns before them.

    Attributes:
        tokens: those of this pass, `(B, T)`; None if the model got embeddings.
        document: the number of each token's document in its row, `(B, T)`; -1 is padding.
        past: columns in the cache before this pass.
        ids: `tokens` of all columns, `(B, S)`, set by `remember`; the last T are this pass's.
        documents: `document` of all columns, likewise.
    """

    tokens: Tensor | None
    document: Tensor
    past: int
    cache: Cache | None = None
    depth: int = 0
    slot: int = 0
    ids: Tensor | None = None
    documents: Tensor | None = None

    def remember(self, states: Tensor) -> Tensor:
        """Return the states of all columns, `(B, S, D)`: the cached ones, if there is a cache, then these."""
        tokens = torch.full_like(self.document, -1) if self.tokens is None else self.tokens
        marks = torch.stack([tokens, self.document], -1)
        if self.cache is not None:
            columns = _columns(self.cache, self.depth, self.slot)
            if columns.get_seq_length() != self.past:
                raise UserError(
                    "this cache was not filled by the model with the inserted mixer: start from an empty cache"
                )
            all_states, all_marks = columns.update(states[:, None], marks[:, None])
            states, marks = all_states[:, 0], all_marks[:, 0]
        self.ids, self.documents = marks[..., 0], marks[..., 1]
        return states


class Inserted(nn.Module):
    """A causal decoder with mixers; called like the decoder, and generates like it.

    Args:
        config: of the decoder, as a mapping.
        mixers: kind, place and `spec` of each.
        base: the decoder itself; built from `config` by default.
        modules: the mixers themselves; built from `mixers` by default.

    Raises:
        UserError: the decoder's blocks or attention layers are not found, or a place does not exist.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        mixers: Sequence[Mapping[str, Any]],
        base: nn.Module | None = None,
        modules: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.spec = {"config": dict(config), "mixers": [dict(m) for m in mixers]}
        decoder: Any = base if base is not None else _build_decoder(config)
        self.base = decoder
        self.mixers = nn.ModuleList(modules if modules is not None else [_build_mixer(m) for m in mixers])
        reader = _BodyHook()
        _body(decoder).register_forward_pre_hook(reader, with_kwargs=True)
        depth = len(blocks(decoder))
        for slot, (placement, mixer) in enumerate(zip(mixers, self.mixers, strict=True)):
            site: Where = placement["where"]
            layers = blocks(decoder) if site == "block" else attentions(decoder)
            if not 0 <= placement["at"] < depth:
                raise UserError(f"there is no block {placement['at']}: this model has {depth}, counted from 0")
            adds = _LayerHook(mixer, reader, depth, slot, site)
            layers[placement["at"]].register_forward_hook(adds, with_kwargs=True)
        # Another model type, so that no fast path that is proven for the plain model is taken for this one.
        cfg: Any = copy.deepcopy(decoder.config)
        cfg.head_type, cfg.model_type, cfg.mixers = cfg.model_type, f"inserted_{cfg.model_type}", self.spec["mixers"]
        self.config = cfg

    @property
    def base_model(self) -> Any:
        """The decoder's body, which returns hidden states."""
        decoder: Any = self.base
        return decoder.base_model

    @property
    def generation_config(self) -> Any:
        """The decoder's generation configuration."""
        return getattr(self.base, "generation_config", None)

    def get_input_embeddings(self) -> Any:
        """Return the decoder's input embeddings."""
        decoder: Any = self.base
        return decoder.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Return the decoder's head."""
        decoder: Any = self.base
        return decoder.get_output_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder."""
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder's `generate`."""
        decoder: Any = self.base
        return decoder.generate(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights; tied ones stay tied."""
        out = super().load_state_dict(*args, **kwargs)
        getattr(self.base, "tie_weights", lambda: None)()
        return out


def insert(model: Model, mixers: Sequence[tuple[Place, nn.Module]]) -> Model:
    """Return a copy of a causal model with mixers, applied in this order at one place; saved in the `didact` format.

    Raises:
        UserError: the model is no causal decoder, its layers are not found, or a place does not exist.
    """
    if model.kind != "causal":
        raise UserError(f"mixers are inserted into causal decoders; this model is of kind '{model.kind}'")
    placements = [
        {"kind": type(m).__name__, "at": place.at, "where": place.where, "spec": getattr(m, "spec", {})}
        for place, m in mixers
    ]
    base: Any = copy.deepcopy(model.module)
    modules = [m.to(base.get_input_embeddings().weight) for _, m in mixers]
    module = Inserted(model.config.to_dict(), placements, base, modules)
    return Model(module.train(base.training), model.processor, model.kind, model.base, model.condition)


def blocks(decoder: Any) -> list[nn.Module]:
    """Return the blocks of a decoder, in order.

    Raises:
        UserError: they are not found.
    """
    depth = decoder.config.num_hidden_layers
    return next([*m] for m in _body(decoder).children() if isinstance(m, nn.ModuleList) and len(m) == depth)


def attentions(decoder: Any) -> list[nn.Module]:
    """Return the attention layer of every block, in order.

    Raises:
        UserError: a block has none, or its kernel (flash, flex) cannot be changed or recorded.
    """
    kernel = getattr(decoder.config, "_attn_implementation", "eager")
    if kernel not in ("eager", "sdpa"):
        raise UserError(
            f"{kernel} attention cannot be recorded or extended: load the model with eager or sdpa attention"
        )
    out = []
    for number, block in enumerate(blocks(decoder)):
        candidates = [m for m in block.modules() if type(m).__name__.endswith(("Attention", "SelfAttention"))]
        attention = next((m for m in candidates if isinstance(getattr(m, "layer_idx", None), int)), None)
        if attention is None:
            raise UserError(f"block {number} of a {type(decoder).__name__} has no attention layer to add to")
        out.append(attention)
    return out


class _Columns(DynamicLayer):
    """A mixer's layer of a cache: states `(B, 1, S, D)`; tokens and documents as integers, `(B, 1, S, 2)`."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns all columns."""
        if self.keys is None or self.values is None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            self.dtype, self.device = key_states.dtype, key_states.device
        else:
            self.keys = torch.cat([self.keys, key_states], -2)
            self.values = torch.cat([self.values, value_states], -2)
        return self.keys, self.values


class _BodyHook:
    """A pre-hook of a decoder's body: keeps the tokens and documents of the current pass for the mixers."""

    reading: Reading

    def __call__(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        inputs = tokens if tokens is not None else kwargs.get("inputs_embeds")
        if inputs is None:
            raise UserError("the model was given neither tokens nor embeddings")
        past = kwargs.get("past_key_values")
        cached = int(past.get_seq_length()) if past is not None else 0
        rows, width = inputs.shape[:2]
        document = torch.zeros(rows, width, dtype=torch.long, device=inputs.device)
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if isinstance(mask, Mapping) or (mask is not None and mask.dim() != 2):
            raise UserError("an inserted mixer cannot read packed masks: give every document its own row")
        if positions is not None and positions.dim() == 2 and not cached:  # packed: they restart with each document
            restarts = positions[:, 1:] != positions[:, :-1] + 1
            document[:, 1:] = restarts.long().expand(rows, -1).cumsum(1)
        if mask is not None:
            document = document.masked_fill(mask[:, -width:] == 0, -1)
            if not cached:  # position jumps in left padding do not count: later passes are document 0
                first = document.gather(1, (document >= 0).long().argmax(1, keepdim=True))
                document = torch.where(document < 0, document, document - first)
        self.reading = Reading(tokens, document, cached)


class _LayerHook:
    """A hook of a layer: adds a mixer's result to the layer's output."""

    def __init__(self, mixer: nn.Module, reader: _BodyHook, depth: int, slot: int, where: Where) -> None:
        self.mixer, self.reader, self.depth, self.slot, self.where = mixer, reader, depth, slot, where

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        first, *rest = out if isinstance(out, tuple) else (out,)
        states = first
        if self.where == "attention":
            states = args[0] if args else kwargs["hidden_states"]
        cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
        current = self.reader.reading
        reading = dataclasses.replace(current, cache=cache, depth=self.depth, slot=self.slot)
        mixed = first + self.mixer(states, reading, layer)
        return (mixed, *rest) if isinstance(out, tuple) else mixed


def _columns(cache: Cache, depth: int, slot: int) -> Any:
    """Return the cache layer of the mixer number `slot`, after the decoder's layers."""
    if any(isinstance(layer, StaticLayer) for layer in cache.layers):
        raise UserError("an inserted mixer needs a cache that grows: generate without cache_implementation='static'")
    layer_class = getattr(cache, "layer_class_to_replicate", None)
    while len(cache.layers) <= depth + slot:
        cache.layers.append(layer_class() if layer_class and len(cache.layers) < depth else _Columns())
    return cache.layers[depth + slot]


def _body(decoder: Any) -> nn.Module:
    """Return the part of a decoder that calls its blocks; its input are the tokens."""
    depth = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    for part in getattr(decoder, "base_model", decoder).modules():
        if any(isinstance(child, nn.ModuleList) and len(child) == depth for child in part.children()):
            body: nn.Module = part
            return body
    raise UserError(f"the blocks of a {type(decoder).__name__} are not found: there is no list of {depth} layers in it")


def _build_mixer(placement: Mapping[str, Any]) -> nn.Module:
    kind = getattr(importlib.import_module(MIXERS[placement["kind"]]), placement["kind"])
    mixer: nn.Module = kind(**placement["spec"])
    return mixer


def _build_decoder(config: Mapping[str, Any]) -> nn.Module:
    if (target := DECODERS.get(str(config.get("model_type")))) is not None:
        module, _, name = target.partition(":")
        own: nn.Module = getattr(importlib.import_module(module), name)(**config["spec"])
        return own
    decoder: nn.Module = opening.build_from_config("AutoModelForCausalLM", config)
    return decoder
