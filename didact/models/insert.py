"""Mixers put into a transformers decoder: something of its own that is added to the output of some of its layers.

A mixer is a module `mixer(states (B, T, D), reading, layer) -> (B, T, D)`: what it gives is added to the output of a
whole block, whose output it reads, or of a block's attention, whose input it reads. Begun at zero it changes nothing
until it is trained. `reading` knows the tokens; `reading.remember(states)` gives back the states of all columns read so
far, so that a mixer that looks back works behind a key/value cache: what it needs is one more layer of that cache,
reordered, repeated and cropped with the others.
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
# By the name of their class; a mixer's `spec` are the arguments it is made of, as JSON holds them.
MIXERS = {"NGramHead": "didact.models.ngram_heads", "Momentum": "didact.models.momentum"}
# Our own decoders, which transformers cannot build from a configuration.
DECODERS = {"recurrent": "didact.models.recurrent:RecurrentLM"}


class Mixer(Protocol):
    """What can be inserted: an `nn.Module` with a `spec`."""

    spec: dict[str, Any]

    def __call__(self, states: Tensor, reading: Reading, layer: nn.Module) -> Tensor:
        """What is added at the columns of `states (B, T, D)`; `layer` is the block or attention it stands at."""


@dataclass(frozen=True)
class Place:
    """Where a mixer stands: at which block, counted from 0, and whether at its end or at its attention's."""

    at: int
    where: Where = "block"


@dataclass
class Reading:
    """The tokens of one forward pass and the columns before them.

    Attributes:
        tokens: those of this pass, `(B, T)`; None where the model was given embeddings.
        document: which document of its row every one of them belongs to, `(B, T)`; -1 is padding.
        ids: as `tokens`, of all columns `(B, S)` once `remember` has been called; the last T are this pass's.
        documents: the same of `document`.
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
        """States of all columns `(B, S, D)`: those kept in the cache, if there is one, and these."""
        tokens = torch.full_like(self.document, -1) if self.tokens is None else self.tokens
        marks = torch.stack([tokens, self.document], -1)
        if self.cache is not None:
            kept = _columns(self.cache, self.depth, self.slot)
            if kept.get_seq_length() != self.past:
                raise UserError(
                    "this cache was not filled by the model with the inserted mixer: begin with an empty one"
                )
            held, read = kept.update(states[:, None], marks[:, None])
            states, marks = held[:, 0], read[:, 0]
        self.ids, self.documents = marks[..., 0], marks[..., 1]
        return states


class Inserted(nn.Module):
    """A causal decoder with mixers; it is called, and generates, as that does.

    Args:
        config: of the decoder, as a mapping.
        mixers: their kinds, places and `spec`s, from which they are made where none is given.
        base: the decoder itself; made from `config` by default.
        made: the mixers themselves.

    Raises:
        UserError: the decoder's blocks or attention layers are not found, or a place does not exist.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        mixers: Sequence[Mapping[str, Any]],
        base: nn.Module | None = None,
        made: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.spec = {"config": dict(config), "mixers": [dict(m) for m in mixers]}
        decoder: Any = base if base is not None else _built(config)
        self.base = decoder
        self.mixers = nn.ModuleList(made if made is not None else [_made(m) for m in mixers])
        reader = _Reader()
        _body(decoder).register_forward_pre_hook(reader, with_kwargs=True)
        depth = len(blocks(decoder))
        for slot, (told, mixer) in enumerate(zip(mixers, self.mixers, strict=True)):
            where: Where = told["where"]
            layers = blocks(decoder) if where == "block" else attentions(decoder)
            if not 0 <= told["at"] < depth:
                raise UserError(f"there is no block {told['at']}: this model has {depth}, counted from 0")
            adds = _Adds(mixer, reader, depth, slot, where)
            layers[told["at"]].register_forward_hook(adds, with_kwargs=True)
        # A type of its own, so that no fast path that is proven for the plain model is taken for this one.
        own: Any = copy.deepcopy(decoder.config)
        own.head_type, own.model_type, own.mixers = own.model_type, f"inserted_{own.model_type}", self.spec["mixers"]
        self.config = own

    @property
    def base_model(self) -> Any:
        """The decoder's body, which gives hidden states."""
        decoder: Any = self.base
        return decoder.base_model

    @property
    def generation_config(self) -> Any:
        """The decoder's."""
        return getattr(self.base, "generation_config", None)

    def get_input_embeddings(self) -> Any:
        """The decoder's."""
        decoder: Any = self.base
        return decoder.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The decoder's."""
        decoder: Any = self.base
        return decoder.get_output_embeddings()

    def forward(self, *args: Any, **given: Any) -> Any:
        """As the decoder's."""
        return self.base(*args, **given)

    def generate(self, *args: Any, **given: Any) -> Any:
        """As the decoder's."""
        decoder: Any = self.base
        return decoder.generate(*args, **given)

    def load_state_dict(self, *args: Any, **given: Any) -> Any:
        """Tied weights stay tied."""
        out = super().load_state_dict(*args, **given)
        getattr(self.base, "tie_weights", lambda: None)()
        return out


def insert(model: Model, mixers: Sequence[tuple[Place, nn.Module]]) -> Model:
    """A copy of a causal model with mixers, those at one place in the order given; saved in the `didact` format.

    Raises:
        UserError: the model is no causal decoder, its layers are not found, or a place does not exist.
    """
    if model.kind != "causal":
        raise UserError(f"mixers are inserted into causal decoders; this model is of kind '{model.kind}'")
    told = [
        {"kind": type(m).__name__, "at": place.at, "where": place.where, "spec": getattr(m, "spec", {})}
        for place, m in mixers
    ]
    base: Any = copy.deepcopy(model.module)
    made = [m.to(base.get_input_embeddings().weight) for _, m in mixers]
    module = Inserted(model.config.to_dict(), told, base, made)
    return Model(module.train(base.training), model.processor, model.kind, model.base, model.condition)


def blocks(decoder: Any) -> list[nn.Module]:
    """The blocks of a decoder, in order.

    Raises:
        UserError: they are not found.
    """
    depth = decoder.config.num_hidden_layers
    return next([*m] for m in _body(decoder).children() if isinstance(m, nn.ModuleList) and len(m) == depth)


def attentions(decoder: Any) -> list[nn.Module]:
    """The attention layer of every block, in order.

    Raises:
        UserError: a block has none, or its kernel (flash, flex) cannot be looked into.
    """
    how = getattr(decoder.config, "_attn_implementation", "eager")
    if how not in ("eager", "sdpa"):
        raise UserError(f"{how} attention cannot be looked into: load the model with eager or sdpa attention")
    out = []
    for number, block in enumerate(blocks(decoder)):
        named = [m for m in block.modules() if type(m).__name__.endswith(("Attention", "SelfAttention"))]
        found = next((m for m in named if isinstance(getattr(m, "layer_idx", None), int)), None)
        if found is None:
            raise UserError(f"block {number} of a {type(decoder).__name__} has no attention layer to add to")
        out.append(found)
    return out


class _Columns(DynamicLayer):
    """A mixer's layer of a cache: states `(B, 1, S, D)` and, of their own type, tokens and documents `(B, 1, S, 2)`."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns all columns."""
        if self.keys is None or self.values is None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            self.dtype, self.device = key_states.dtype, key_states.device
        else:
            self.keys = torch.cat([self.keys, key_states], -2)
            self.values = torch.cat([self.values, value_states], -2)
        return self.keys, self.values


class _Reader:
    """A pre-hook of a decoder's body: keeps what its mixers must know of the pass that begins."""

    reading: Reading

    def __call__(self, body: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        tokens = args[0] if args else given.get("input_ids")
        like = tokens if tokens is not None else given.get("inputs_embeds")
        if like is None:
            raise UserError("the model was given neither tokens nor embeddings")
        past = given.get("past_key_values")
        before = int(past.get_seq_length()) if past is not None else 0
        rows, width = like.shape[:2]
        document = torch.zeros(rows, width, dtype=torch.long, device=like.device)
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if isinstance(mask, Mapping) or (mask is not None and mask.dim() != 2):
            raise UserError("an inserted mixer cannot read packed masks: give every document a row of its own")
        if positions is not None and positions.dim() == 2 and not before:  # packed: they begin anew with a document
            new = positions[:, 1:] != positions[:, :-1] + 1
            document[:, 1:] = new.long().expand(rows, -1).cumsum(1)
        if mask is not None:
            document = document.masked_fill(mask[:, -width:] == 0, -1)
            if not before:  # what positions do on padding at the left counts for nothing: later passes are document 0
                first = document.gather(1, (document >= 0).long().argmax(1, keepdim=True))
                document = torch.where(document < 0, document, document - first)
        self.reading = Reading(tokens, document, before)


class _Adds:
    """A hook of a layer: adds what a mixer gives to the layer's output."""

    def __init__(self, mixer: nn.Module, reader: _Reader, depth: int, slot: int, where: Where) -> None:
        self.mixer, self.reader, self.depth, self.slot, self.where = mixer, reader, depth, slot, where

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> Any:
        first, *rest = out if isinstance(out, tuple) else (out,)
        states = first
        if self.where == "attention":
            states = args[0] if args else given["hidden_states"]
        cache = next((x for x in (*args, *given.values()) if isinstance(x, Cache)), None)
        now = self.reader.reading
        reading = dataclasses.replace(now, cache=cache, depth=self.depth, slot=self.slot)
        mixed = first + self.mixer(states, reading, layer)
        return (mixed, *rest) if isinstance(out, tuple) else mixed


def _columns(cache: Cache, depth: int, slot: int) -> Any:
    """The layer of a cache that is the mixer's of this number, behind the decoder's."""
    if any(isinstance(layer, StaticLayer) for layer in cache.layers):
        raise UserError("an inserted mixer needs a cache that grows: generate without cache_implementation='static'")
    like = getattr(cache, "layer_class_to_replicate", None)
    while len(cache.layers) <= depth + slot:
        cache.layers.append(like() if like and len(cache.layers) < depth else _Columns())
    return cache.layers[depth + slot]


def _body(decoder: Any) -> nn.Module:
    """The part of a decoder that calls its blocks: it is given the tokens."""
    depth = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    for part in getattr(decoder, "base_model", decoder).modules():
        if any(isinstance(child, nn.ModuleList) and len(child) == depth for child in part.children()):
            found: nn.Module = part
            return found
    raise UserError(f"the blocks of a {type(decoder).__name__} are not found: there is no list of {depth} layers in it")


def _made(told: Mapping[str, Any]) -> nn.Module:
    kind = getattr(importlib.import_module(MIXERS[told["kind"]]), told["kind"])
    out: nn.Module = kind(**told["spec"])
    return out


def _built(config: Mapping[str, Any]) -> nn.Module:
    if (own := DECODERS.get(str(config.get("model_type")))) is not None:
        module, _, name = own.partition(":")
        made: nn.Module = getattr(importlib.import_module(module), name)(**config["spec"])
        return made
    built: nn.Module = opening.built("AutoModelForCausalLM", config)
    return built
