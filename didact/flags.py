"""Options as they are spelled: hyphens or underscores, and what the option of another library is called here. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from didact.errors import UserError

DATA = (  # what others call records, and what other methods do
    "data", "dataset", "datasets", "dataset-name", "dataset-dir", "data-path", "train-file", "train-data",
    "train-dataset", "file", "demo", "demos", "preference", "preferences", "judged", "scored", "text", "texts",
)  # fmt: skip
# What TRL, transformers and lm-eval call it, and what it is called here.
ELSEWHERE = {
    "learning-rate": "lr", "num-train-epochs": "epochs", "num-epochs": "epochs", "max-steps": "steps",
    "per-device-train-batch-size": "rows", "train-batch-size": "rows", "batch-size": "rows",
    "gradient-accumulation-steps": "micro-tokens", "lr-scheduler-type": "schedule", "warmup-ratio": "warmup",
    "optim": "optimizer", "adam-beta1": "betas", "adam-beta2": "betas", "max-grad-norm": "clip", "wd": "weight-decay",
    "bf16": "precision", "fp16": "precision", "mixed-precision": "precision", "torch-dtype": "dtype",
    "lora-r": "lora", "lora-rank": "lora", "use-peft": "lora", "use-lora": "lora", "rank": "lora",
    "save-steps": "save-every", "report-to": "track", "output-dir": "out", "output": "out", "output-path": "out",
    "model-name-or-path": "model", "model-name": "model", "model-args": "model", "pretrained": "model",
    "max-seq-length": "max-length", "max-seq-len": "max-length", "max-len": "max-length", "cutoff-len": "max-length",
    "truncation-mode": "truncate", "truncation-side": "truncate", "loss-type": "loss", "loss-fn": "loss",
    "num-fewshot": "shots", "fewshot": "shots", "adam-epsilon": "eps",
    "tasks": "protocol", "eval-dataset": "score-on", "eval-file": "score-on", "test-file": "score-on",
    "eval-split": "holdout", "test-size": "holdout", "val-size": "holdout", "chat-template": "chat",
    "apply-chat-template": "chat", "random-seed": "seed", "overwrite-output-dir": "overwrite",
    "sequence-len": "max-length", "max-prompt-length": "max-length", "micro-batch-size": "micro-tokens",
    "lora-target": "lora-targets", "lora-target-modules": "lora-targets", "template": "chat",
    "val-set-size": "holdout", "eval-steps": "evaluate-every", "eval-strategy": "evaluate-every",
    "gradient-checkpointing": "checkpointing", "load-in-4bit": "quantize", "load-in-8bit": "quantize",
    "quantization-bit": "quantize", "load-best-model-at-end": "keep-best",
    "field": "map", "columns": "map", "column-mapping": "map", "cuda": "device", "config-file": "config",
    "learning-rates": "lrs", "cv": "folds", "n-seeds": "seeds", "num-seeds": "seeds",
}  # fmt: skip


def spelled(words: Sequence[str], known: Sequence[str], data: Sequence[str] = ()) -> list[str]:
    """Options as they are known, with hyphens or underscores.

    Args:
        words: of a command line.
        known: its options, as `--name`.
        data: those of them that name a file of records, which others call `--data`.

    Raises:
        UserError: one is unknown; the nearest is named.
    """
    by_plain = {o.lstrip("-").replace("_", "-"): o for o in known}
    out = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, eq, value = word[2:].partition("=")
            plain = name.replace("_", "-")
            if plain not in by_plain:
                raise UserError(f"unknown option --{name}{meant(plain, by_plain, data)}")
            word = by_plain[plain] + eq + value
        out.append(word)
    return out


def meant(name: str, known: Iterable[str], data: Sequence[str] = ()) -> str:
    """`: did you mean --lr?`, where an option is spelled almost so, or another library's word for one of these."""
    plain, known = name.replace("_", "-"), [o.replace("_", "-") for o in known]
    if plain in DATA and data and plain not in known:
        return f": records are given by what they are: {', '.join('--' + d.replace('_', '-') for d in data)}"
    elsewhere = {there: ours for there, ours in ELSEWHERE.items() if _near(ours, known)}
    near = _near(plain, [*known, *elsewhere], 0.7)
    return f": did you mean --{_near(elsewhere.get(near, near), known)}?" if near else ""


def _near(name: str, known: Sequence[str], cut: float = 0.8) -> str:
    return next(iter(difflib.get_close_matches(name, known, 1, cut)), "")
