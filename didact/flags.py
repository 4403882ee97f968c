"""Spelling of options: hyphens or underscores, and the names that other libraries use for them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from didact.errors import UserError

DATA = (  # names for files of records in other libraries and in other methods
    "data", "dataset", "datasets", "dataset-name", "dataset-dir", "data-path", "train-file", "train-data",
    "train-dataset", "file", "demo", "demos", "preference", "preferences", "judged", "scored", "text", "texts",
)  # fmt: skip
# An option's name in TRL, transformers or lm-eval: its name here.
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


def normalise(words: Sequence[str], known: Sequence[str], data: Sequence[str] = ()) -> list[str]:
    """Normalise option names, written with hyphens or underscores, to the known ones.

    Args:
        words: the words of a command line.
        known: its options, as `--name`.
        data: those options that take a file of records, which other libraries call `--data`.

    Raises:
        UserError: an option is unknown; the message names the nearest.
    """
    by_plain = {o.lstrip("-").replace("_", "-"): o for o in known}
    out = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, eq, value = word[2:].partition("=")
            plain = name.replace("_", "-")
            if plain not in by_plain:
                raise UserError(f"unknown option --{name}{suggestion(plain, by_plain, data)}")
            word = by_plain[plain] + eq + value
        out.append(word)
    return out


def suggestion(name: str, known: Iterable[str], data: Sequence[str] = ()) -> str:
    """Return `: did you mean --lr?` for a near miss or another library's name of a known option; else nothing."""
    plain, known = name.replace("_", "-"), [o.replace("_", "-") for o in known]
    if plain in DATA and data and plain not in known:
        return f": give files of records by their own options: {', '.join('--' + d.replace('_', '-') for d in data)}"
    elsewhere = {theirs: ours for theirs, ours in ELSEWHERE.items() if _closest(ours, known)}
    match = _closest(plain, [*known, *elsewhere], 0.7)
    return f": did you mean --{_closest(elsewhere.get(match, match), known)}?" if match else ""


def _closest(name: str, known: Sequence[str], cut: float = 0.8) -> str:
    return next(iter(difflib.get_close_matches(name, known, 1, cut)), "")
