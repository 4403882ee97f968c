"""`didact run --dry-run`: the most that a run would take, and whether this machine has it."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from didact import progress
from didact.data import encode
from didact.learn import footprint
from didact.models import forward
from didact.models.model import Model
from didact.parallel import launch
from didact.parallel.planner import SPARE
from didact.parallel.work import BACKWARD, FORWARD
from didact.requests import Request
from didact.types import Text
from didact.verbs.advise import contents
from didact.verbs.job import Job, prepare

TRAINED = (FORWARD + BACKWARD) / FORWARD  # cost of forward and backward, in forward passes


def dry_run(request: Request) -> dict[str, Any]:
    """Estimate what a run would take: memory, disk, time, steps, truncated rows; nothing is trained or written.

    If a launcher started several processes, the memory is that of each.
    """
    job = prepare(request)
    job.tell()
    first = next(iter(job.train.values()), ())
    report: dict[str, Any] = {"method": request.method, "options": job.options}
    if job.entry["fit"]:
        report["steps"] = _steps(job, first)
    held = {f"held-out {k}": v for k, v in job.scored.items() if isinstance(v, Sequence) and v is not job.train.get(k)}
    rows = {**job.train, **held}
    report["records"] = {name: len(part) for name, part in rows.items()}
    if not isinstance(job.model, Model):
        return report
    sizes = {name: encode.sizes(job.model.tokenizer, _pairs(part)) for name, part in rows.items()}
    longest = max((n for part in sizes.values() for n in part), default=0)
    memory, disk = _memory(job, job.model, longest), _disk(job, job.model)
    report |= {"memory_bytes": memory, "disk_bytes": disk, "fits": _fits(job.model, memory, disk, request.out)}
    if duration := _time(job, job.model, sizes):
        report["time"] = duration
    context = job.model.context
    cut = {name: sum(n > context for n in part) for name, part in sizes.items()}
    return report | {"truncated_rows": cut, "longest_record_tokens": longest, "context": context}


def _pairs(records: Sequence[Any]) -> list[tuple[str, str]]:
    return [pair for record in records for pair in contents.pairs(record)]


def _memory(job: Job, model: Model, longest: int) -> dict[str, int]:
    """Return the most bytes of memory, by part and in total; without training there are no gradients and moments."""
    if job.entry["fit"] and job.fit.steps != 0:
        parts = footprint.of(model, job.fit, min(longest, model.context))
    else:
        weights = footprint.weights(model)
        process = max(0, footprint.resident() - weights) if model.device.type == "cpu" else 0
        copies = 2 if "models" in job.entry["gives"] else 1
        reads = footprint.read(model, max(forward.at_once(model), min(longest, model.context)))
        parts = {"process": process, "weights": copies * weights, "gradients_and_moments": 0, "activations": reads}
    total = sum(size for name, size in parts.items() if name != "total")
    return {k: v for k, v in parts.items() if k != "total"} | {"at_most_in_all": int(SPARE * total)}


def _disk(job: Job, model: Model) -> dict[str, int]:
    """Return the most bytes in --out: the result, and two checkpoints while one replaces the other."""
    weights = footprint.weights(model)
    trained, moments = weights, footprint.MOMENTS[job.fit.optimizer]
    if job.fit.lora:  # rank times (inputs + outputs) of every matrix, at most, in float32
        trained = 4 * job.fit.lora * sum(sum(p.shape) for p in model.module.parameters() if p.dim() == 2)
    parts = {
        "result": (trained if job.fit.lora else weights) * ("models" in job.entry["gives"]),
        "checkpoints": 2 * trained * (2 + moments) * bool(job.entry["fit"]),
    }
    return parts | {"at_most_in_all": int(SPARE * sum(parts.values())) + (1 << 20)}


def _fits(model: Model, memory: Mapping[str, int], disk: Mapping[str, int], out: str) -> str:
    """Return `yes`, or what this machine lacks and how to need less."""
    near = next(place for place in (Path(out).absolute(), *Path(out).absolute().parents) if place.exists())
    lacks = []
    needed = memory["at_most_in_all"] * (launch.on_node() if model.device.type == "cpu" else 1)  # all on this node
    if needed > (free := free_memory(model.device)):
        hint = "--lora 8, --dtype bfloat16, a smaller --micro-tokens or --max-length, or a smaller model"
        lacks.append(f"memory {_gib(needed)}, {_gib(free)} free ({hint})")
    if disk["at_most_in_all"] > (free := shutil.disk_usage(near).free):
        lacks.append(f"disk {_gib(disk['at_most_in_all'])}, {_gib(free)} free at {near} (--lora 8, or another --out)")
    return f"NO: {'; '.join(lacks)}" if lacks else "yes"


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process could hold on a device: those free, and those it holds already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device))
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if Path("/proc/meminfo").exists() else ()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (maximum := limit.read_text(encoding="utf-8").strip()).isdigit():
        current = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        free = min(free, int(maximum) - current)
    return free + footprint.resident()


def _time(job: Job, model: Model, sizes: Mapping[str, Sequence[int]]) -> str:
    """Estimate how long training takes, from one forward pass now; empty if steps are not counted in records."""
    first = next(iter(job.train.values()), ())
    if not job.entry["fit"] or not first:
        return ""
    per_record = sum(statistics.fmean(sizes[name]) for name in job.train if sizes[name])
    tokens = job.fit.rows * (per_record or model.context)
    steps = job.fit.total_steps(len(first))
    if not (rate := footprint.rate(model)):
        return ""
    rounds = " per round" if "rounds" in job.options else ""
    seconds = steps * tokens * TRAINED / rate
    speed = f"{rate:,.0f} tokens/s forward, measured now"
    return f"about {progress.duration(seconds)} of training{rounds} ({speed}), plus scoring"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _steps(job: Job, records: Sequence[Any]) -> str:
    """Return the number of steps, and what it assumes about rows, which the method itself may form otherwise."""
    if job.fit.steps is not None:
        return str(job.fit.steps)
    rows, assumption = len(records), "one row per record"
    if records and isinstance(records[0], Text) and isinstance(job.model, Model):
        tokens = sum(len(job.model.tokenizer(r.text)["input_ids"]) + 1 for r in records if isinstance(r, Text))
        rows, assumption = -(-tokens // job.model.context), f"{tokens} tokens in rows as long as the context"
    rounds = ", in each round" if "rounds" in job.options else ""
    return f"{job.fit.total_steps(rows)} (if the method makes {assumption}{rounds})"
