"""Models, clusters and layouts as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["1f1b", "gpipe"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
PADDED = 128  # tensor parallelism pads every rank's part of the vocabulary to a multiple of this


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer: `sharded` weights that tensor parallelism splits, `replicated` ones that every rank has, `matmul`
    those that a token is multiplied with (of a mixture only the active experts'), `window` most positions it attends
    to: None for all, 0 for a layer without attention. `more` are half-precision numbers per token that its code saves
    for the backward pass in addition to the formula (`memory.linear`).
    """

    sharded: int
    replicated: int
    matmul: int
    window: int | None = None
    more: int = 0

    def span(self, context: int) -> int:
        """Return the positions that it attends to in a sequence of this length."""
        return context if self.window is None else min(self.window, context)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A causal model's shape; by default like GPT-2: biases, LayerNorm, learned positions, a tied head, dropout.

    `blocks`, `embedding`, `last` and `head` (weights outside the layers that tokens are multiplied with) are exact
    counts of a built model, if there is one.
    """

    layers: int
    hidden: int
    heads: int
    vocab: int
    context: int
    kv_heads: int = 0
    head_dim: int = 0
    ffn: int = 0
    gated: bool = False
    biases: bool = True
    rms: bool = False
    positions: bool = True
    tied: bool = True
    dropout: bool = True
    experts: int = 0
    active: int = 0
    blocks: tuple[Block, ...] = ()
    embedding: int | None = None
    last: int | None = None
    head: int | None = None
    name: str = ""

    @property
    def width(self) -> int:
        """Width of all heads together."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, which is that of the value heads."""
        return self.width // self.heads * (self.kv_heads or self.heads)

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer; 4 hidden by default."""
        return self.ffn or 4 * self.hidden

    @property
    def each(self) -> tuple[Block, ...]:
        """The layers: exact counts if there are any, else from the shape."""
        return self.blocks or (self._block(),) * self.layers

    @property
    def before(self) -> int:
        """Weights before the layers that every rank of the first stage has whole: position embeddings."""
        if self.embedding is not None:
            return self.embedding - self.vocab * self.hidden
        return self.context * self.hidden if self.positions else 0

    @property
    def after(self) -> int:
        """Weights between the last layer and the head: the final norm."""
        return self.last if self.last is not None else self.hidden * (1 if self.rms else 2)

    @property
    def parameters(self) -> int:
        """All weights, a tied head once."""
        table = self.vocab * self.hidden
        inside = sum(block.sharded + block.replicated for block in self.each)
        return inside + table * (1 if self.tied else 2) + self.before + self.after

    def _block(self) -> Block:
        h, f, width, kv = self.hidden, self.inner, self.width, self.kv_width
        attention, mlp = 2 * h * width + 2 * h * kv, (3 if self.gated else 2) * h * f
        router = h * self.experts
        sharded, replicated = attention + mlp * max(1, self.experts), 2 * h * (1 if self.rms else 2) + router
        if self.biases:
            sharded += width + 2 * kv + f * (2 if self.gated else 1)
            replicated += 2 * h
        active = self.active if self.experts else 1
        return Block(sharded=sharded, replicated=replicated, matmul=attention + mlp * active + router)


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Devices: `memory` bytes and `peak` operations per second of each, `intra` and `inter` bytes per second that each
    can send within its node and between nodes; `efficiency` is the share of the peak that matrix products reach.
    """

    gpus: int
    gpus_per_node: int = 8
    memory: float = 80 * 2.0**30
    peak: float = 312e12
    intra: float = 300e9
    inter: float = 25e9
    efficiency: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A parallel layout: `pp` stages, `dp` replicas, `tp` parts of a layer; micro-batches of `micro` sequences.

    `uneven` stages differ by one layer if the layers do not divide, and the slowest sets the pace. `chunks` is the
    number of interleaved parts of a stage, `sp` sequence parallelism of what tensor parallelism leaves whole, `zero`
    the ZeRO stage over the replicas.
    """

    pp: int = 1
    dp: int = 1
    tp: int = 1
    micro: int = 1
    batch: int = 1
    recompute: Recompute = "none"
    zero: int = 0
    sp: bool = False
    chunks: int = 1
    schedule: Schedule = "1f1b"
    uneven: bool = False

    @property
    def ranks(self) -> int:
        """Number of devices."""
        return self.pp * self.dp * self.tp

    @property
    def micros(self) -> int:
        """Micro-batches per step of every pipeline."""
        return self.batch // (self.dp * self.micro)


MODELS = {  # Smith et al. 2022, section 2; Brown et al. 2020, table 2.1; Radford et al. 2019
    "mt-nlg": ModelSpec(layers=105, hidden=20480, heads=128, vocab=51200, context=2048, name="mt-nlg"),
    "gpt3-175b": ModelSpec(layers=96, hidden=12288, heads=96, vocab=50257, context=2048, name="gpt3-175b"),
    "gpt2": ModelSpec(layers=12, hidden=768, heads=12, vocab=50257, context=1024, name="gpt2"),
}
GPUS = {  # dense bfloat16, NVLink in one direction, a network card a GPU
    "a100": ClusterSpec(gpus=8),
    "a100-40gb": ClusterSpec(gpus=8, memory=40 * 2.0**30),
    "h100": ClusterSpec(gpus=8, peak=989e12, intra=450e9, inter=50e9),
    "h200": ClusterSpec(gpus=8, memory=141e9, peak=989e12, intra=450e9, inter=50e9),
}


def padded(model: ModelSpec, tp: int) -> int:
    """Size of the vocabulary, padded to divide over `tp` ranks; unpadded for one."""
    return model.vocab if tp == 1 else math.ceil(model.vocab / (PADDED * tp)) * PADDED * tp


def stage(model: ModelSpec, layout: Layout, number: int) -> tuple[Block, ...]:
    """Return the layers of a stage; interleaved, every chunk takes the next ones of the model.

    Layers left over go to the stages after the first, which holds the embedding and most micro-batches.
    """
    blocks, parts = model.each, layout.pp * layout.chunks
    size, remainder = divmod(len(blocks), parts)
    if remainder and layout.uneven:
        starts = [n * size + min(max(n - 1, 0), remainder) for n in range(parts + 1)]
        return blocks[starts[number] : starts[number + 1]]
    return tuple(
        block for c in range(layout.chunks) for block in blocks[(c * layout.pp + number) * size :][:size]
    )  # fmt: skip


def slowest(model: ModelSpec, layout: Layout) -> int:
    """Number of layers of the largest stage."""
    return math.ceil(len(model.each) / layout.pp)


def within(model: ModelSpec, context: int) -> ModelSpec:
    """Return the model with another sequence length and the same learned positions."""
    if context == model.context:
        return model
    return replace(model, context=context, embedding=model.vocab * model.hidden + model.before)
