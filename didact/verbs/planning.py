"""`didact plan`: what training a model on many devices takes, before any is rented."""

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

SHOWN = (8, 16)  # most stages and micro-batches in the picture
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
    """A request: a model by its folder, name or dimensions, a cluster, a batch, and the fixed parts of the layout."""

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


def planned(request: Planned) -> dict[str, Any]:
    """Return the plan, the content of `plan.json`; write that into the output folder, if there is one.

    Raises:
        UserError: the model, cluster or layout is impossible; no layout is legal.
    """
    preset = NAMED.get(request.model or "", {})
    batch = request.batch or preset.get("batch")
    if batch is None:
        raise UserError("option --batch is missing: how many sequences a step trains on")
    policy = request.state or preset.get("state", "18")
    fused = (request.attention or preset.get("attention", "fused")) == "fused"
    job = Job(_model(request), request.cluster, batch, memory.POLICIES[policy], fused)
    if request.measure:
        job = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, efficiency=_share_of_peak(job)))
    plan = planner.plan(job, request.fixed)
    measured = {}
    if request.measured:
        first = (plan.ranked + plan.large)[0].layout
        share = planner.calibrated(job, first, request.measured)
        flops = work.flops(job.model, batch, first.recompute)
        gpu_seconds = request.measured * first.ranks
        measured = {
            "seconds": request.measured, "layout": planner.spelled(first), "rate": flops.hardware / gpu_seconds,
            "model_rate": flops.model / gpu_seconds, "mfu": flops.model / gpu_seconds / job.cluster.peak,
            "efficiency": share,
        }  # fmt: skip
        job = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, efficiency=share))
        plan = planner.plan(job, request.fixed)
    report = _report(request, plan, request.tokens or preset.get("tokens"), request.ramp or preset.get("ramp"))
    report |= {"measured": measured, "state": policy, "attention": "fused" if fused else "plain"}
    if request.out:
        with folders.at_work(request.out, "plan"):
            files.write_json(Path(request.out) / "plan.json", report)
    return report


def _model(request: Planned) -> ModelSpec:
    shape = dict(request.shape)
    context = shape.pop("context", None)
    if request.model is None:
        if missing := [n for n in ("layers", "hidden", "heads", "vocab") if n not in shape]:
            raise UserError(
                f"no model: give a folder, one of {', '.join(NAMED)}, or its dimensions (--{missing[0]} is missing)"
            )
        try:
            return ModelSpec(**shape, context=context or 2048, name="by its figures")
        except ZeroDivisionError:
            raise UserError("option --heads: 0: must be above 0") from None
    if shape:
        raise UserError(f"option --{next(iter(shape)).replace('_', '-')}: {request.model} has its own dimensions")
    if request.model in NAMED and not Path(request.model).exists():
        model = spec.MODELS[request.model]
    else:
        from didact.models import shape as shapes

        model = shapes.read(request.model)
    return spec.within(model, context) if context else model


def _report(request: Planned, plan: Plan, tokens: float | None, ramp: Any) -> dict[str, Any]:
    job, best = plan.job, plan.best
    chosen = best or plan.large[0]
    report: dict[str, Any] = {
        "verb": "plan",
        "model": _dimensions(job.model), "cluster": dataclasses.asdict(job.cluster), "batch": job.batch,
        "fits": best is not None, "best": _row(job, chosen),
        "rows": [_row(job, e) for e in plan.ranked[: request.top]],
        "counts": {"fit": len(plan.ranked), "too_large": len(plan.large), "illegal": sum(plan.refused.values())},
        "illegal": dict(plan.refused.most_common(8)), "why": planner.why(plan),
        "groups": {n: list(c) for n, c in work.crossings(chosen.layout, job.cluster.gpus_per_node).items()},
        "traffic": work.traffic(job.model, chosen.layout, job.policy)._asdict(),
    }  # fmt: skip
    if tokens:
        run = planner.run(job, chosen.layout, tokens, ramp)
        hours = run["seconds"] / 3600 * job.cluster.gpus
        report["run"] = run | {"ramp": list(ramp) if ramp else None, "gpu_hours": hours}
        report["run"] |= {"cost": hours * request.price} if request.price else {}
    report["figures"] = [figures.as_row(figure) for figure in (_pipeline(chosen.layout), *_bars(chosen, job))]
    return report


def _dimensions(model: ModelSpec) -> dict[str, Any]:
    exact = ("blocks", "embedding", "last", "head")
    shape = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in exact}
    return shape | {"parameters": model.parameters, "kv_heads": model.kv_heads or model.heads, "ffn": model.inner}


def _row(job: Job, e: Estimate) -> dict[str, Any]:
    """Return a layout and what it takes, as a row of the tables."""
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
    """Draw the passes of a layout's first stages and micro-batches, as many as fit into a picture."""
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
    memory_bars = [figures.Bar(name, size / 2**30) for name, size in e.memory.items()]
    time_bars = [figures.Bar(PARTS[name], s) for name, s in e.seconds.items()]
    size = job.cluster.memory / 2**30
    return (
        figures.Bars(
            title="Memory of the fullest GPU", x="GiB", bars=memory_bars, levels={"memory of a GPU": size},
            note=f"The sum, with a tenth more for the allocator, is {e.bytes / 2**30:,.1f} of {size:,.1f} GiB.",
        ),
        figures.Bars(
            title="Where a step's time goes", x="s", bars=time_bars,
            note="Communication counts in full: engines that overlap it with computing take less.",
        ),
    )  # fmt: skip


def _share_of_peak(job: Job) -> float:
    """Measure the share of the peak that a layer's matrix products reach on this machine's device."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if job.policy.weights == 2 else torch.float32
    rows = job.model.context if device.type == "cuda" else 256
    h, flops, seconds = job.model.hidden, 0.0, 0.0
    for inputs, outputs in ((h, job.model.width + 2 * job.model.kv_width), (h, job.model.inner), (job.model.inner, h)):
        a, b = (torch.ones(size, dtype=kind, device=device) for size in ((rows, inputs), (inputs, outputs)))
        for repeat in range(3):  # the first warms up
            start = time.monotonic()
            float((a @ b)[0, 0])  # waits for an accelerator
            if repeat:
                flops, seconds = flops + 2.0 * rows * inputs * outputs, seconds + time.monotonic() - start
    share = flops / seconds / job.cluster.peak
    if share > 1:
        raise UserError(
            f"option --measure: {flops / seconds:.3g} operations per second here, above --peak {job.cluster.peak:g}"
        )
    return share
