"""The cost of a step: floating-point operations, bytes between ranks, and the seconds of both."""

from __future__ import annotations

from typing import NamedTuple

from didact.parallel import memory
from didact.parallel.memory import State
from didact.parallel.spec import ClusterSpec, Layout, ModelSpec, Recompute, slowest

FORWARD, BACKWARD = 2.0, 4.0  # operations per weight and token


class Flops(NamedTuple):
    """Operations of a step: `hardware` with recomputation, `model` without."""

    hardware: float
    model: float


class Traffic(NamedTuple):
    """Bytes that a rank sends in a step, by group."""

    tp: float
    pp: float
    dp: float


def flops(model: ModelSpec, batch: int, recompute: Recompute = "none") -> Flops:
    """Operations of a step of `batch` sequences: 2 M N K for every matrix product, twice that backward.

    For GPT-2's architecture `72 B s L h^2 (1 + s / 6h + V / 12 L h)`, and under full recomputation
    `96 B s L h^2 (1 + s / 6h + V / 16 L h)`; selective recomputation repeats the products over the sequence only.
    Attention counts all pairs of positions, as the formula does.
    """
    tokens = batch * model.context
    dense = FORWARD * tokens * sum(block.matmul for block in model.each)
    pairs = 2 * FORWARD * tokens * model.width * sum(block.span(model.context) for block in model.each)
    head = FORWARD * tokens * (model.head or model.vocab * model.hidden)
    train = (FORWARD + BACKWARD) / FORWARD
    model_flops = train * (dense + pairs + head)
    return Flops(model_flops + {"none": 0.0, "selective": pairs, "full": dense + pairs}[recompute], model_flops)


def bubble(layout: Layout) -> float:
    """Return a pipeline's idle time over its computing time: `(pp - 1) / (v m)`."""
    return (layout.pp - 1) / (layout.chunks * layout.micros)


def traffic(model: ModelSpec, layout: Layout, policy: State) -> Traffic:
    """Return the bytes that a rank of the first stage sends in a step.

    tp: two all-reduces of `b s h` numbers forward and two backward per layer and micro-batch (two more if the layer
    is recomputed), each `2 (t - 1) / t` of that. pp: `b s h` per boundary, micro-batch and direction, v times if
    interleaved. dp: `2 (N - 1) / N` of the gradients; with ZeRO 1 gradients are scattered and weights gathered, with 2
    gradients are scattered for every micro-batch, with 3 weights are gathered for every one too, forward and backward.
    """
    width, m, t, n = policy.weights, layout.micros, layout.tp, layout.dp
    states = layout.micro * model.context * model.hidden * width
    reduces = (6 if layout.recompute == "full" else 4) * slowest(model, layout) * m
    states_sent = 2 * m * layout.chunks * states if layout.pp > 1 else 0
    weights, gradients = policy.weights, policy.gradients
    bytes_per_weight = {
        0: 2 * gradients, 1: gradients + weights, 2: m * gradients + weights, 3: m * (gradients + 2 * weights),
    }[layout.zero]  # fmt: skip
    return Traffic(
        tp=reduces * states * 2 * (t - 1) / t,
        pp=states_sent,
        dp=(n - 1) / n * memory.parameters(model, layout, 0) * bytes_per_weight,
    )


def crossings(layout: Layout, per_node: int) -> dict[str, tuple[int, int]]:
    """Return for every kind of group how many there are and how many span nodes; `rank = (p dp + d) tp + t`."""
    pp, dp, tp = layout.pp, layout.dp, layout.tp
    groups = {
        "tp": [[(p * dp + d) * tp + t for t in range(tp)] for p in range(pp) for d in range(dp)],
        "dp": [[(p * dp + d) * tp + t for d in range(dp)] for p in range(pp) for t in range(tp)],
        "pp": [[(p * dp + d) * tp + t for p in range(pp)] for d in range(dp) for t in range(tp)],
    }
    return {
        name: (len(ranks), sum(len({rank // per_node for rank in group}) > 1 for group in ranks))
        for name, ranks in groups.items()
    }


def seconds(model: ModelSpec, cluster: ClusterSpec, layout: Layout, policy: State) -> dict[str, float]:
    """Return the seconds of a step by purpose: computing, the pipeline's idle time, and communication by group.

    Communication is assumed not to overlap with computing: an upper bound for engines that overlap.
    """
    compute = flops(model, layout.batch, layout.recompute).hardware
    compute *= slowest(model, layout) * layout.pp / len(model.each)
    compute /= layout.ranks * cluster.peak * cluster.efficiency
    sent, n = traffic(model, layout, policy), cluster.gpus_per_node
    # Ranks of a group are a stride apart: it stays within a node if its whole extent does.
    in_node = {"tp": layout.tp <= n, "dp": layout.tp * layout.dp <= n, "pp": layout.ranks <= n}
    times = {"compute": compute, "bubble": compute * bubble(layout)}
    return times | {
        name: size / (cluster.intra if in_node[name] else cluster.inter) for name, size in sent._asdict().items()
    }
