"""Models, clusters and layouts as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["1f1b", "gpipe"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
PADDED = 128  # what a vocabulary that tensor parallelism splits is a multiple of, on every rank


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer: `sharded` weights that tensor parallelism splits, `replicated` ones that every rank has, `matmul`
    those a token is multiplied with (of a mixture only the active experts'), `window` positions it attends to at most:
    None all of them, 0 where it has no attention. `more` are half-precision numbers a token that its code keeps for
    the backward pass beside what the formula of the shape says.
    """

    sharded: int
    replicated: int
    matmul: int
    window: int | None = None
    more: int = 0

    def span(self, context: int) -> int:
        """Positions it attends to in a sequence of this length."""
        return context if self.window is None else min(self.window, context)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A causal model's shape; by default GPT-2's kind: biases, LayerNorm, learned positions, a tied head, dropout.

    `blocks`, `embedding`, `last` and `head` (weights outside the layers that tokens are multiplied with) are exact
    counts of a built model, where there is one.
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
        """Of all heads together."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Of all heads of keys together, and of values."""
        return self.width // self.heads * (self.kv_heads or self.heads)

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer: 4 hidden where it is not given."""
        return self.ffn or 4 * self.hidden

    @property
    def each(self) -> tuple[Block, ...]:
        """The layers, by their exact counts or by the shape."""
        return self.blocks or (self._block(),) * self.layers

    @property
    def before(self) -> int:
        """Weights of embeddings that every rank of the first stage has whole: positions."""
        if self.embedding is not None:
            return self.embedding - self.vocab * self.hidden
        return self.context * self.hidden if self.positions else 0

    @property
    def after(self) -> int:
        """Weights behind the last layer and before the head: the final norm."""
        return self.last if self.last is not None else self.hidden * (1 if self.rms else 2)

    @property
    def parameters(self) -> int:
        """All of them, a tied head once."""
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
    """Devices: `memory` bytes and `peak` operations a second of each, `intra` and `inter` bytes a second that each can
    send within its node and beyond it; `efficiency` is the share of the peak that matrix products reach.
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
    """How a model lies on a cluster: `pp` stages, `dp` copies, `tp` parts of a layer; `micro` sequences a pass.

    `uneven` stages differ by a layer where their number does not divide, and the slowest sets the pace. `chunks` is how
    many parts of a stage are interleaved, `sp` whether what tensor parallelism leaves whole is split
    along the sequence, `zero` the stage of ZeRO over the copies.
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
        """Devices it needs."""
        return self.pp * self.dp * self.tp

    @property
    def micros(self) -> int:
        """Micro-batches of a step that every pipeline runs."""
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
    """Entries of the vocabulary with what makes it divide over `tp` ranks; as it is on one."""
    return model.vocab if tp == 1 else math.ceil(model.vocab / (PADDED * tp)) * PADDED * tp


def stage(model: ModelSpec, layout: Layout, number: int) -> tuple[Block, ...]:
    """The layers of a stage; interleaved, every chunk takes the next ones of the model.

    What is left over goes to the stages behind the first, which holds the embedding and most micro-batches.
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
    """Layers of the stage that has most."""
    return math.ceil(len(model.each) / layout.pp)


def within(model: ModelSpec, context: int) -> ModelSpec:
    """The same model on sequences of another length; learned positions stay as many as they were."""
    if context == model.context:
        return model
    return replace(model, context=context, embedding=model.vocab * model.hidden + model.before)
