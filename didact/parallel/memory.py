"""Memory of training on every rank, in bytes: weights, gradients and moments, activations, logits."""

from __future__ import annotations

from typing import NamedTuple

from didact.parallel.spec import Block, Layout, ModelSpec, padded, stage


class State(NamedTuple):
    """Bytes per weight: the weight itself, its gradient, and the optimizer's state (master copy, two moments)."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


POLICIES = {
    "16": State(2, 2, 12),  # ZeRO's: half precision gradients
    "18": State(2, 4, 12),  # Megatron's: float32 gradients
    "20": State(2, 6, 12),  # MT-NLG's: both
    "fp32": State(4, 4, 8),  # no master copy
}


def state_of_weight(width: int, moments: int) -> State:
    """Return the state of a weight of `width` bytes: gradient, moments (float32 at least), master copy if narrower."""
    return State(width, max(width, 4), max(width, 4) * moments + (4 if width < 4 else 0))


def parameters(model: ModelSpec, layout: Layout, number: int, vocab: int | None = None) -> int:
    """Return the number of weights on a rank of a stage: matrices split over `tp`, norms and row-parallel biases whole.

    A tied head is the embedding where both are on one stage, and a copy of it on the last stage otherwise.
    """
    tp, table = layout.tp, (vocab or padded(model, layout.tp)) // layout.tp * model.hidden
    first, last = number == 0, number == layout.pp - 1
    inside = sum(block.sharded // tp + block.replicated for block in stage(model, layout, number))
    tables = first + (last and not (model.tied and first))
    return inside + tables * table + first * model.before + last * model.after


def shard(count: int, parts: int, part: int = 0) -> int:
    """Return how many of `count` things split over `parts` a part has; the first parts take the remainder."""
    return count // parts + (part < count % parts)


def state(count: int, policy: State, zero: int = 0, dp: int = 1, rank: int = 0) -> State:
    """Return the bytes of the state of `count` weights on one of `dp` ranks: ZeRO 1 splits the optimizer's state, 2
    also gradients, 3 also weights.
    """
    owned = shard(count, dp, rank)
    return State(*(size * (owned if zero >= level else count) for size, level in zip(policy, (3, 2, 1), strict=True)))


def gathered(model: ModelSpec, layout: Layout, width: int) -> float:
    """Return the bytes of weights that ZeRO 3 gathers: those outside of layers during a whole pass, and two layers."""
    if layout.zero < 3 or layout.dp == 1:
        return 0.0
    sizes = [block.sharded // layout.tp + block.replicated for block in model.each]
    return width * (parameters(model, layout, 0) - sum(sizes) + 2.0 * max(sizes))


def layer(
    model: ModelSpec, layout: Layout, block: Block | None = None, *, width: int = 2, fused: bool = False
) -> float:
    """Return the bytes that one layer saves of a micro-batch for its backward pass, without full recomputation.

    In half precision with dropout `s b h (10 + 24 / t + 5 a s / (h t))`: inputs of both norms, of the projections and
    of the feed-forward layer, and two masks are on all t ranks, unless sequence parallelism splits them; queries, keys,
    values, attention output, and both sides of the nonlinearity are split. The last term, softmax, its dropout mask and
    output, is not saved by fused attention or selective recomputation. `width` is bytes per number.
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
    """Return the numbers per token that a layer saves by its shape, without scores and masks."""
    return model.hidden * _hidden_copies(model) + _split_width(model)


def _hidden_copies(model: ModelSpec) -> int:
    """Saved tensors of hidden width: inputs of norms and of what follows; RMSNorm also saves its normalised states."""
    return 6 if model.rms else 4


def _split_width(model: ModelSpec) -> int:
    inner = model.inner * (4 if model.gated else 2) * (model.active if model.experts else 1)
    return 2 * model.width + 2 * model.kv_width + inner


def inflight(layout: Layout, number: int) -> float:
    """Return how many micro-batches' activations a stage holds at once, in units of all of its layers.

    1F1B: `min(m, pp - i)`; GPipe: m; interleaved, the first stage `pp (1 + (pp - 1) / (pp v))`.
    """
    pp, v, m = layout.pp, layout.chunks, layout.micros
    if layout.schedule == "gpipe":
        return m
    if v == 1:
        return min(m, pp - number)
    return min(m * v, 2 * (pp - number - 1) + (v - 1) * pp + 1) / v


def activations(model: ModelSpec, layout: Layout, number: int = 0, *, width: int = 2, fused: bool = False) -> float:
    """Return the bytes of activations on a rank of a stage, for all micro-batches in flight.

    Full recomputation saves the input of every layer, `2 s b h`, and one layer's activations while it is recomputed.
    """
    blocks = stage(model, layout, number)
    sizes = [layer(model, layout, block, width=width, fused=fused) for block in blocks]
    if layout.recompute != "full":
        return inflight(layout, number) * sum(sizes)
    inputs = width * layout.micro * model.context * model.hidden / (layout.tp if layout.sp else 1)
    return inflight(layout, number) * len(blocks) * inputs + max(sizes)


def logits(model: ModelSpec, layout: Layout) -> float:
    """Return the bytes of a micro-batch's logits in float32, on the last stage."""
    return 4.0 * layout.micro * model.context * padded(model, layout.tp) / layout.tp
