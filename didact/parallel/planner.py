"""Legal layouts of a model on a cluster, their memory and time, the best, and the reasons for it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from didact.errors import UserError
from didact.parallel import memory, ramp, work
from didact.parallel.memory import State
from didact.parallel.spec import RECOMPUTES, ClusterSpec, Layout, ModelSpec

SPARE = 1.1  # memory that an allocator reserves over what is requested
CHUNKS = (1, 2, 4)  # interleavings to try
MICROS = 32  # most sequences in a micro-batch


@dataclass(frozen=True)
class Job:
    """A planning problem: a model, a cluster, sequences per step, bytes per weight, and whether attention is fused."""

    model: ModelSpec
    cluster: ClusterSpec
    batch: int
    policy: State = memory.POLICIES["18"]
    fused: bool = True

    def __post_init__(self) -> None:
        sizes = {"gpus": self.cluster.gpus, "gpus-per-node": self.cluster.gpus_per_node, "batch": self.batch}
        sizes |= {"layers": self.model.layers, "hidden": self.model.hidden, "heads": self.model.heads}
        sizes |= {"vocab": self.model.vocab, "context": self.model.context}
        rates = {f: getattr(self.cluster, f) for f in ("memory", "peak", "intra", "inter", "efficiency")}
        for name, value in {**sizes, **rates}.items():
            if not 0 < value < math.inf:
                raise UserError(f"option --{name}: {value}: must be above 0")
        if self.cluster.efficiency > 1:
            raise UserError(f"option --efficiency: {self.cluster.efficiency}: a share of the peak, at most 1")
        if not self.model.head_dim and self.model.hidden % self.model.heads:
            raise UserError(f"hidden {self.model.hidden}, heads {self.model.heads}: heads must divide hidden")
        if self.model.heads % (self.model.kv_heads or 1):
            raise UserError(f"heads {self.model.heads}, kv-heads {self.model.kv_heads}: kv-heads must divide heads")
        if not 0 <= self.model.active <= self.model.experts or (self.model.experts and not self.model.active):
            raise UserError(f"experts {self.model.experts}, active {self.model.active}: active must be 1 to experts")


@dataclass(frozen=True)
class Estimate:
    """The cost of a layout: bytes on the fullest rank and seconds of a step, each by purpose."""

    layout: Layout
    stage: int
    memory: Mapping[str, float]
    seconds: Mapping[str, float]
    flops: work.Flops

    @property
    def bytes(self) -> float:
        """Bytes on the fullest rank, with the allocator's reserve."""
        return SPARE * sum(self.memory.values())

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        """Operations per second and device, with recomputation, as papers report them."""
        return self.flops.hardware / (self.layout.ranks * self.step)


def refusal(job: Job, layout: Layout) -> str | None:
    """Return why a layout cannot be run at all; None if it can."""
    model, tp, pp = job.model, layout.tp, layout.pp
    kv = model.kv_heads or model.heads
    if tp > job.cluster.gpus_per_node:
        return f"tp {tp} crosses a node of {job.cluster.gpus_per_node} GPUs"
    if model.heads % tp or kv % tp:
        return f"tp {tp} does not divide {kv if kv % tp else model.heads} heads"
    if model.inner % tp or any(block.sharded % tp for block in model.each):
        return f"tp {tp} does not divide the matrices of a layer"
    if model.layers % (pp * layout.chunks) and not (layout.uneven and layout.chunks == 1 and pp < model.layers):
        return f"pp x chunks = {pp * layout.chunks} does not divide {model.layers} layers"
    if layout.ranks != job.cluster.gpus:
        return f"pp {pp} x dp {layout.dp} x tp {tp} is not the {job.cluster.gpus} GPUs there are"
    if layout.batch % (layout.dp * layout.micro):
        return f"dp x micro = {layout.dp * layout.micro} does not divide the batch of {layout.batch}"
    if layout.chunks > 1 and (pp == 1 or layout.micros % pp or layout.schedule != "1f1b"):
        return f"interleaving needs a pipeline and micro-batches ({layout.micros}) divisible by pp {pp}"
    if layout.zero > 1 and pp > 1:
        return f"zero {layout.zero} with a pipeline: every micro-batch would move gradients or weights again"
    return None


def estimate(job: Job, layout: Layout) -> Estimate:
    """Estimate the cost of a legal layout, with the memory of the stage whose ranks are fullest."""
    by_stage = {number: _memory(job, layout, number) for number in {0, min(1, layout.pp - 1), layout.pp - 1}}
    # Later stages hold no more than the second.
    fullest = max(by_stage, key=lambda number: sum(by_stage[number].values()))
    seconds = work.seconds(job.model, job.cluster, layout, job.policy)
    flops = work.flops(job.model, layout.batch, layout.recompute)
    return Estimate(layout, fullest, by_stage[fullest], seconds, flops)


def _memory(job: Job, layout: Layout, number: int) -> dict[str, float]:
    count = memory.parameters(job.model, layout, number)
    state = memory.state(count, job.policy, layout.zero, layout.dp)._asdict()
    width = job.policy.weights
    return state | {
        "activations": memory.activations(job.model, layout, number, width=width, fused=job.fused),
        "logits": memory.logits(job.model, layout) if number == layout.pp - 1 else 0.0,
        "gathered": memory.gathered(job.model, layout, width),
    }


def layouts(job: Job, fixed: Mapping[str, Any]) -> Iterator[Layout]:
    """Yield every layout worth trying that has the `fixed` values."""
    gpus = job.cluster.gpus

    def choices(name: str, values: Iterable[Any]) -> list[Any]:
        return [fixed[name]] if name in fixed else list(values)

    sizes = [n for n in range(1, gpus + 1) if gpus % n == 0]
    micros = [2**k for k in range(MICROS.bit_length())]
    for tp in choices("tp", [n for n in sizes if n <= job.cluster.gpus_per_node]):
        for pp in choices("pp", [n for n in sizes if n <= job.model.layers]):
            for dp in choices("dp", [max(1, gpus // (pp * tp))]):
                for micro in choices("micro", [b for b in micros if job.batch % (dp * b) == 0] or [1]):
                    for zero in choices("zero", (1,) if pp > 1 and dp > 1 else (1, 2, 3) if dp > 1 else (0,)):
                        for recompute in choices(
                            "recompute", [r for r in RECOMPUTES if r != "selective" or not job.fused]
                        ):
                            for chunks in choices("chunks", CHUNKS if pp > 1 else (1,)):
                                yield Layout(
                                    pp=pp, dp=dp, tp=tp, micro=micro, batch=job.batch, recompute=recompute, zero=zero,
                                    sp=fixed.get("sp", tp > 1), chunks=chunks, uneven=fixed.get("uneven", False),
                                    schedule=fixed.get("schedule", "1f1b"),
                                )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Legal layouts that fit, fastest first; those that do not fit, smallest first; counts of reasons for refusals."""

    job: Job
    ranked: list[Estimate]
    large: list[Estimate]
    refused: Counter[str]

    @property
    def best(self) -> Estimate | None:
        """The fastest layout that fits."""
        return self.ranked[0] if self.ranked else None


def plan(job: Job, fixed: Mapping[str, Any] | None = None) -> Plan:
    """Rank all layouts of a job by the seconds of a step; ties go to the one with less memory and traffic.

    Raises:
        UserError: none is legal; the message has the most frequent reasons.
    """
    ranked: list[Estimate] = []
    large: list[Estimate] = []
    refused = Counter[str]()
    for layout in layouts(job, fixed or {}):
        if reason := refusal(job, layout):
            refused[reason] += 1
            continue
        estimated = estimate(job, layout)
        (ranked if estimated.bytes <= job.cluster.memory else large).append(estimated)
    if not ranked and not large:
        reasons = "; ".join(reason for reason, _ in refused.most_common(3))
        raise UserError(f"no layout is legal: {reasons}")
    ranked.sort(key=lambda e: (e.step, e.bytes, e.layout.tp, e.layout.pp))
    large.sort(key=lambda e: e.bytes)
    return Plan(job, ranked, large, refused)


def why(planned: Plan) -> list[str]:
    """Explain what changing each option of the best layout would cost: one line per value, for its best layout."""
    best = planned.best
    if best is None:
        return []
    out, explained = [], {best.layout}
    for name in ("tp", "pp", "dp", "micro", "recompute", "zero", "chunks"):
        chosen = getattr(best.layout, name)
        alternatives = {getattr(e.layout, name) for e in [*planned.ranked, *planned.large]} - {chosen}
        if name not in ("recompute", "zero"):  # the next smaller and the next larger one
            lower, higher = [v for v in alternatives if v < chosen], [v for v in alternatives if v > chosen]
            alternatives = {*([max(lower)] if lower else []), *([min(higher)] if higher else [])}
        for value in sorted(alternatives):
            e = next(e for e in [*planned.ranked, *planned.large] if getattr(e.layout, name) == value)
            if e.layout in explained:
                continue
            explained.add(e.layout)
            cost = (
                _slower(e, best)
                if e.bytes <= planned.job.cluster.memory
                else f"does not fit: {e.bytes / 2**30:,.1f} GiB at least"
            )
            out.append(f"{name} {value} instead of {chosen}: {cost} ({spelled(e.layout)})")
    return out


def _slower(other: Estimate, best: Estimate) -> str:
    """Describe how much slower a layout is, and the main cause."""
    extra = {name: other.seconds[name] - best.seconds[name] for name in best.seconds}
    largest = max(extra, key=lambda name: extra[name])
    cause = {
        "compute": "operations", "bubble": "idle time of the pipeline", "tp": "all-reduces in layers",
        "pp": "states between stages", "dp": "gradients and weights between copies",
    }[largest]  # fmt: skip
    if other.step <= best.step:
        return "as fast, with more memory"
    return f"{other.step / best.step - 1:.1%} slower, most by {cause} ({extra[largest]:+.3g} s)"


def spelled(layout: Layout) -> str:
    """Format a layout as options, without those at their defaults."""
    text = f"pp {layout.pp}, dp {layout.dp}, tp {layout.tp}, micro {layout.micro}, recompute {layout.recompute}"
    extra = {"zero": layout.zero, "chunks": layout.chunks if layout.chunks > 1 else 0}
    return text + "".join(f", {name} {value}" for name, value in extra.items() if value) + (", sp" if layout.sp else "")


def run(job: Job, layout: Layout, tokens: float, growth: tuple[int, int, float] | None = None) -> dict[str, float]:
    """Return steps and seconds of a run over `tokens` tokens, with an optional batch ramp `(first, step, tokens)`.

    A batch of the ramp that does not divide over the replicas is rounded down to one that does.

    Raises:
        UserError: the ramp does not lead from its first batch to the full one.
    """
    total = tokens / job.model.context
    sizes: Iterable[tuple[int, int]] = [(layout.batch, math.ceil(total / layout.batch))]
    if growth:
        first, increment, length = growth
        if not (0 < first <= layout.batch and increment > 0 and length > 0 and (layout.batch - first) % increment == 0):
            raise UserError(
                f"option --ramp: from {first} in steps of {increment} does not lead to a batch of {layout.batch}"
            )
        sizes = ramp.steps(first, increment, layout.batch, length / job.model.context, total)
    multiple, steps, seconds = layout.dp * layout.micro, 0, 0.0
    for size, count in sizes:
        rounded = max(multiple, size // multiple * multiple)
        current = dataclasses.replace(layout, batch=rounded)
        if current.chunks > 1 and current.micros % current.pp:
            current = dataclasses.replace(current, chunks=1)
        count = math.ceil(count * size / rounded - 1e-9)
        steps += count
        seconds += count * sum(work.seconds(job.model, job.cluster, current, job.policy).values())
    return {"tokens": tokens, "steps": steps, "seconds": seconds}


def calibrated(job: Job, layout: Layout, measured: float) -> float:
    """Return the efficiency at which a step of this layout takes the measured seconds.

    Raises:
        UserError: it took less than communication alone, or than the peak allows.
    """
    at_peak = work.seconds(job.model, dataclasses.replace(job.cluster, efficiency=1.0), layout, job.policy)
    busy = at_peak["compute"] + at_peak["bubble"]
    measured_busy = measured - (sum(at_peak.values()) - busy)
    if measured_busy < busy:
        raise UserError(
            f"option --measured: {measured:g} s a step: the peak of the GPUs and their links allow "
            f"{sum(at_peak.values()):.3g} s at best; look at --peak, --intra and --inter"
        )
    return busy / measured_busy
