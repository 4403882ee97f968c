"""`didact plan`: what a model takes over many devices, before any is rented."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from didact import figures, files, folders
from didact.parallel import memory, pipeline, planner, spec, work
from didact.parallel.planner import Estimate, Job, Plan
from didact.parallel.spec import Layout, ModelSpec
from didact.types import UserError

SHOWN = (8, 16)  # stages and micro-batches of the picture, at most
NAMED: Mapping[str, Mapping[str, Any]] = {  # how the papers trained them
    "mt-nlg": {"batch": 1920, "tokens": 270e9, "ramp": (32, 32, 12e9), "state": "20", "attention": "plain"},
    "gpt3-175b": {"batch": 1600, "tokens": 300e9, "state": "18", "attention": "plain"},
    "gpt2": {"batch": 512, "state": "18", "attention": "plain"},
}
PARTS = {
    "compute": "computing", "bubble": "pipeline idle", "tp": "all-reduces in layers", "pp": "states between stages",
    "dp": "gradients and weights between copies",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is asked for: a model by its place, name or figures, a cluster, a batch, and what is fixed of the layout."""

    model: str | None
    shape: Mapping[str, Any] = field(default_factory=dict)
    cluster: spec.ClusterSpec
    batch: int | None = None
    tokens: float | None = None
    ramp: tuple[int, int, float] | None = None
    state: str | None = None
    attention: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    measured: float | None = None
    measure: bool = False
    price: float | None = None
    top: int = 10
    out: str | None = None


def planned(asked: Planned) -> dict[str, Any]:
    """The plan as `plan.json` has it; written with its page where there is a folder for it.

    Raises:
        UserError: the model, cluster or layout is impossible; nothing is legal.
    """
    named = NAMED.get(asked.model or "", {})
    batch = asked.batch or named.get("batch")
    if batch is None:
        raise UserError("option --batch is missing: how many sequences a step trains on")
    policy = asked.state or named.get("state", "18")
    fused = (asked.attention or named.get("attention", "fused")) == "fused"
    job = Job(_model(asked), asked.cluster, batch, memory.POLICIES[policy], fused)
    if asked.measure:
        job = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, efficiency=_share_of_peak(job)))
    found = planner.plan(job, asked.fixed)
    measured = {}
    if asked.measured:
        first = (found.ranked + found.large)[0].layout
        share = planner.calibrated(job, first, asked.measured)
        done = work.flops(job.model, batch, first.recompute)
        each = asked.measured * first.ranks
        measured = {
            "seconds": asked.measured, "layout": planner.spelled(first), "rate": done.hardware / each,
            "model_rate": done.model / each, "mfu": done.model / each / job.cluster.peak, "efficiency": share,
        }  # fmt: skip
        job = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, efficiency=share))
        found = planner.plan(job, asked.fixed)
    told = _told(asked, found, asked.tokens or named.get("tokens"), asked.ramp or named.get("ramp"))
    told |= {"measured": measured, "state": policy, "attention": "fused" if fused else "plain"}
    if asked.out:
        with folders.at_work(asked.out, "plan"):
            files.write_json(Path(asked.out) / "plan.json", told)
    return told


def _model(asked: Planned) -> ModelSpec:
    shape = dict(asked.shape)
    context = shape.pop("context", None)
    if asked.model is None:
        if missing := [n for n in ("layers", "hidden", "heads", "vocab") if n not in shape]:
            raise UserError(
                f"no model: give a model folder or one of {', '.join(NAMED)}, or figures (--{missing[0]} is missing)"
            )
        try:
            return ModelSpec(**shape, context=context or 2048, name="by its figures")
        except ZeroDivisionError:
            raise UserError("option --heads: 0: must be above 0") from None
    if shape:
        raise UserError(f"option --{next(iter(shape)).replace('_', '-')}: {asked.model} has figures of its own")
    if asked.model in NAMED and not Path(asked.model).exists():
        found = spec.MODELS[asked.model]
    else:
        from didact.models import shape as shapes

        found = shapes.read(asked.model)
    return spec.within(found, context) if context else found


def _told(asked: Planned, found: Plan, tokens: float | None, ramp: Any) -> dict[str, Any]:
    job, best = found.job, found.best
    shown = best or found.large[0]
    told: dict[str, Any] = {
        "verb": "plan",
        "model": _figures_of(job.model), "cluster": dataclasses.asdict(job.cluster), "batch": job.batch,
        "fits": best is not None, "best": _row(job, shown),
        "rows": [_row(job, e) for e in found.ranked[: asked.top]],
        "counts": {"fit": len(found.ranked), "too_large": len(found.large), "illegal": sum(found.refused.values())},
        "illegal": dict(found.refused.most_common(8)), "why": planner.why(found),
        "groups": {n: list(c) for n, c in work.crossings(shown.layout, job.cluster.gpus_per_node).items()},
        "traffic": work.traffic(job.model, shown.layout, job.policy)._asdict(),
    }  # fmt: skip
    if tokens:
        run = planner.run(job, shown.layout, tokens, ramp)
        hours = run["seconds"] / 3600 * job.cluster.gpus
        told["run"] = run | {"ramp": list(ramp) if ramp else None, "gpu_hours": hours}
        told["run"] |= {"cost": hours * asked.price} if asked.price else {}
    told["figures"] = [figures.as_row(figure) for figure in (_pipeline(shown.layout), *_bars(shown, job))]
    return told


def _figures_of(model: ModelSpec) -> dict[str, Any]:
    exact = ("blocks", "embedding", "last", "head")
    shape = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in exact}
    return shape | {"parameters": model.parameters, "kv_heads": model.kv_heads or model.heads, "ffn": model.inner}


def _row(job: Job, e: Estimate) -> dict[str, Any]:
    """A layout and what it takes, as the tables have it."""
    sequences = e.layout.batch * job.model.context
    return {
        "layout": dataclasses.asdict(e.layout), "spelled": planner.spelled(e.layout), "micro_batches": e.layout.micros,
        "step_seconds": e.step, "seconds": dict(e.seconds), "bubble": work.bubble(e.layout),
        "memory_bytes": e.bytes, "memory": dict(e.memory), "stage": e.stage,
        "flops": e.flops._asdict(), "rate": e.rate, "model_rate": e.rate * e.flops.model / e.flops.hardware,
        "mfu": e.rate * e.flops.model / e.flops.hardware / job.cluster.peak,
        "tokens_per_second": sequences / e.step,
    }  # fmt: skip


def _pipeline(layout: Layout) -> figures.Timeline:
    """The passes of the first stages and micro-batches of a layout, as far as a picture takes them."""
    pp = min(layout.pp, SHOWN[0])
    micros = min(layout.micros, max(SHOWN[1] // layout.chunks, pp))
    micros = max(pp, micros // pp * pp) if layout.chunks > 1 else micros
    drawn = dataclasses.replace(layout, pp=pp, dp=1, tp=1, micro=1, batch=micros)
    parts = [f", part {c + 1}" if layout.chunks > 1 else "" for c in range(layout.chunks)]
    spans = [
        figures.Span(e.stage, e.start, e.end, str(micro + 1), ("backward" if back else "forward") + parts[chunk])
        for e in pipeline.simulate(drawn)
        for micro, chunk, back in (e.work,)
    ]
    note = f"Numbers are micro-batches; idle time is {work.bubble(drawn):.1%} of the computing here"
    if (pp, micros) != (layout.pp, layout.micros):
        note += (
            f", with {pp} of {layout.pp} stages and {micros} of {layout.micros} micro-batches drawn, and "
            f"{work.bubble(layout):.1%} in the plan"
        )
    rows = [f"stage {i + 1}" for i in range(pp)]
    return figures.Timeline(title="The pipeline", x="passes forward", rows=rows, spans=spans, note=note + ".")


def _bars(e: Estimate, job: Job) -> tuple[figures.Bars, figures.Bars]:
    held = [figures.Bar(name, size / 2**30) for name, size in e.memory.items()]
    spent = [figures.Bar(PARTS[name], s) for name, s in e.seconds.items()]
    size = job.cluster.memory / 2**30
    return (
        figures.Bars(
            title="Memory of the fullest GPU", x="GiB", bars=held, levels={"what a GPU has": size},
            note=f"The sum, with a tenth more for the allocator, is {e.bytes / 2**30:,.1f} of {size:,.1f} GiB.",
        ),
        figures.Bars(
            title="Where a step's time goes", x="s", bars=spent,
            note="What is sent counts in full: engines that overlap it with computing come below.",
        ),
    )  # fmt: skip


def _share_of_peak(job: Job) -> float:
    """The share of the peak that the matrix products of a layer reach on this machine's device."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if job.policy.weights == 2 else torch.float32
    rows = job.model.context if device.type == "cuda" else 256
    h, done, spent = job.model.hidden, 0.0, 0.0
    for inputs, outputs in ((h, job.model.width + 2 * job.model.kv_width), (h, job.model.inner), (job.model.inner, h)):
        a, b = (torch.ones(size, dtype=kind, device=device) for size in ((rows, inputs), (inputs, outputs)))
        for turn in range(3):  # the first warms up
            began = time.monotonic()
            float((a @ b)[0, 0])  # waits for an accelerator
            if turn:
                done, spent = done + 2.0 * rows * inputs * outputs, spent + time.monotonic() - began
    share = done / spent / job.cluster.peak
    if share > 1:
        raise UserError(
            f"option --measure: {done / spent:.3g} operations a second here, more than --peak {job.cluster.peak:g}"
        )
    return share
