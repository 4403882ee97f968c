"""`didact run --dry-run`: what a run would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from didact.data import encode
from didact.learn import footprint
from didact.models.model import Model
from didact.options import Request
from didact.types import Text
from didact.verbs.advise import contents
from didact.verbs.job import Job, prepare


def dry_run(request: Request) -> dict[str, Any]:
    """What a run would take: memory, steps, truncated rows; nothing is trained or written."""
    job = prepare(request)
    job.tell()
    first = next(iter(job.train.values()), ())
    shown: dict[str, Any] = {"method": request.method, "options": job.options}
    if job.entry["fit"]:
        shown["steps"] = _steps(job, first)
    shown["records"] = {name: len(rows) for name, rows in job.train.items()}
    if not isinstance(job.model, Model):
        return shown
    model = job.model
    pairs = {name: [pair for r in rows for pair in contents.pairs(r)] for name, rows in job.train.items()}
    longest = max((n for p in pairs.values() for n in encode.sizes(model.tokenizer, p)), default=0)
    memory = footprint.of(model, job.fit, longest)
    truncated = {name: encode.truncated(model.tokenizer, p, model.context) for name, p in pairs.items()}
    lengths = {"truncated_rows": truncated, "longest_record_tokens": longest, "context": model.context}
    return shown | {"memory_bytes": memory} | lengths


def _steps(job: Job, records: Sequence[Any]) -> str:
    """How many, and what that rests on where the method itself decides what a row is."""
    if job.fit.steps is not None:
        return str(job.fit.steps)
    rows, told = len(records), "a row a record"
    if records and isinstance(records[0], Text) and isinstance(job.model, Model):
        tokens = sum(len(job.model.tokenizer(r.text)["input_ids"]) + 1 for r in records if isinstance(r, Text))
        rows, told = -(-tokens // job.model.context), f"{tokens} tokens in rows as long as the context"
    rounds = ", in each round" if "rounds" in job.options else ""
    return f"{job.fit.total_steps(rows)} (if the method makes {told}{rounds})"
