"""`didact run --dry-run`: what a run would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from didact.data import encode
from didact.models import forward
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
    model, item = job.model, next(job.model.module.parameters()).element_size()
    trained = model.parameters
    if job.fit.lora:  # rank times (inputs + outputs) of every matrix, at most
        trained = sum(job.fit.lora * sum(p.shape) for p in model.module.parameters() if p.dim() == 2)
    moments = {"adamw": 2, "adam": 2, "sgd": 0, "adafactor": 0}[job.fit.optimizer]
    width = getattr(model.text_config, "vocab_size", 0)
    pairs = {name: [pair for r in rows for pair in contents.pairs(r)] for name, rows in job.train.items()}
    longest = max((n for p in pairs.values() for n in encode.sizes(model.tokenizer, p)), default=0)
    micro = max(job.fit.micro_tokens or forward.at_once(model), longest)
    hidden = getattr(model.text_config, "hidden_size", 0) * getattr(model.text_config, "num_hidden_layers", 1)
    activations = item * micro * (16 * hidden + 3 * min(width, 1 << 24))
    memory = {
        "weights": 2 * item * model.parameters,  # the model as it came, and the one that is taught
        "gradients_and_moments": int(trained * (max(item, 4) * (1 + moments) + (4 if item < 4 else 0))),
        "activations_at_most": activations,
    }
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
