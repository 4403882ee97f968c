"""Bytes that training keeps on every rank: weights, gradients and moments, activations, logits."""

from __future__ import annotations

from typing import NamedTuple

from didact.parallel.spec import Block, Layout, ModelSpec, padded, stage


class State(NamedTuple):
    """Bytes of one weight: itself, its gradient, and what the optimizer holds of it (master copy, two moments)."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


POLICIES = {
    "16": State(2, 2, 12),  # ZeRO's: half precision gradients
    "18": State(2, 4, 12),  # Megatron's: float32 gradients
    "20": State(2, 6, 12),  # MT-NLG's: both
    "fp32": State(4, 4, 8),  # no master copy
}


def kept(width: int, moments: int) -> State:
    """Of a weight of `width` bytes: gradient and moments in float32 at least, a float32 copy of a narrower weight."""
    return State(width, max(width, 4), max(width, 4) * moments + (4 if width < 4 else 0))


def parameters(model: ModelSpec, layout: Layout, number: int, vocab: int | None = None) -> int:
    """Weights on a rank of a stage: matrices split over `tp`, norms and row-parallel biases whole.

    A tied head is the embedding where both are on one stage, and a copy of it on the last stage otherwise.
    """
    tp, table = layout.tp, (vocab or padded(model, layout.tp)) // layout.tp * model.hidden
    first, last = number == 0, number == layout.pp - 1
    inside = sum(block.sharded // tp + block.replicated for block in stage(model, layout, number))
    tables = first + (last and not (model.tied and first))
    return inside + tables * table + first * model.before + last * model.after


def shard(count: int, parts: int, part: int = 0) -> int:
    """Of `count` things split over `parts`, how many this part has; the first take what is left over."""
    return count // parts + (part < count % parts)


def state(count: int, policy: State, zero: int = 0, dp: int = 1, rank: int = 0) -> State:
    """Bytes of the state of `count` weights on one of `dp` ranks: ZeRO 1 splits what the optimizer holds, 2 gradients
    too, 3 weights too.
    """
    owned = shard(count, dp, rank)
    return State(*(size * (owned if zero >= level else count) for size, level in zip(policy, (3, 2, 1), strict=True)))


def gathered(model: ModelSpec, layout: Layout, width: int) -> float:
    """Bytes of weights that ZeRO 3 gathers: what is in no layer throughout a pass, and a layer with the next one."""
    if layout.zero < 3 or layout.dp == 1:
        return 0.0
    sizes = [block.sharded // layout.tp + block.replicated for block in model.each]
    return width * (parameters(model, layout, 0) - sum(sizes) + 2.0 * max(sizes))


def layer(
    model: ModelSpec, layout: Layout, block: Block | None = None, *, width: int = 2, fused: bool = False
) -> float:
    """Bytes that one layer keeps of a micro-batch for its backward pass, without full recomputation.

    In half precision with dropout `s b h (10 + 24 / t + 5 a s / (h t))`: inputs of both norms, of the projections and
    of the feed-forward layer, and two masks are on all t ranks, unless sequence parallelism splits them; queries, keys,
    values, what attention gives, and both sides of the nonlinearity are split. The last term, softmax, its mask and
    what is left of it, is not kept by fused attention or selective recomputation. `width` is of a number in bytes.
    """
    h, t, tokens = model.hidden, layout.tp, layout.micro * model.context
    mask = 1 if model.dropout else 0
    replicated = tokens * h * (_hidden_copies(model) * width + 2 * mask)
    block = block or model.each[0]
    replicated += tokens * block.more * width
    split = tokens * width * _split_width(model)
    span = block.span(model.context)
    scores = tokens * model.heads * span * (width * (1 + mask) + mask)
    if fused or layout.recompute == "selective":
        scores = 0
    return replicated / (t if layout.sp else 1) + (split + scores) / t


def linear(model: ModelSpec) -> int:
    """Numbers a token that a layer keeps by its shape, scores and masks aside."""
    return model.hidden * _hidden_copies(model) + _split_width(model)


def _hidden_copies(model: ModelSpec) -> int:
    """Of hidden width: inputs of norms and of what follows; transformers' RMSNorm keeps what it normalised too."""
    return 6 if model.rms else 4


def _split_width(model: ModelSpec) -> int:
    inner = model.inner * (4 if model.gated else 2) * (model.active if model.experts else 1)
    return 2 * model.width + 2 * model.kv_width + inner


def inflight(layout: Layout, number: int) -> float:
    """Micro-batches whose activations a stage of this number holds at once, for all of its layers.

    One forward, one backward: `min(m, pp - i)`; GPipe: m; interleaved, the first stage `pp (1 + (pp - 1) / (pp v))`.
    """
    pp, v, m = layout.pp, layout.chunks, layout.micros
    if layout.schedule == "gpipe":
        return m
    if v == 1:
        return min(m, pp - number)
    return min(m * v, 2 * (pp - number - 1) + (v - 1) * pp + 1) / v


def activations(model: ModelSpec, layout: Layout, number: int = 0, *, width: int = 2, fused: bool = False) -> float:
    """Bytes of activations on a rank of a stage, all micro-batches in flight.

    Full recomputation keeps the input of every layer, `2 s b h`, and one layer's whole set while it is run again.
    """
    blocks = stage(model, layout, number)
    sizes = [layer(model, layout, block, width=width, fused=fused) for block in blocks]
    if layout.recompute != "full":
        return inflight(layout, number) * sum(sizes)
    inputs = width * layout.micro * model.context * model.hidden / (layout.tp if layout.sp else 1)
    return inflight(layout, number) * len(blocks) * inputs + max(sizes)


def logits(model: ModelSpec, layout: Layout) -> float:
    """Bytes of a micro-batch's logits in float32, on the last stage."""
    return 4.0 * layout.micro * model.context * padded(model, layout.tp) / layout.tp
