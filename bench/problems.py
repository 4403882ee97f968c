"""What the arms share: a model, texts of given token lengths, and the measurement of time and peak memory."""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from didact.models import build
from didact.models.model import Model

VOCABULARY = 8192
SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]


def words(count: int = 7800, seed: int = 0) -> list[str]:
    """Invented words, all different."""
    rng = random.Random(seed)
    out: dict[str, None] = {}
    while len(out) < count:
        out["".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 3))))] = None
    return list(out)


def llama(d: int = 128, layers: int = 4, vocabulary: int = VOCABULARY, context: int = 1024, **more: Any) -> Model:
    """A random Llama whose tokenizer has one token for nearly every invented word."""
    rng = random.Random(1)
    vocabulary_words = words()
    texts = [" ".join(rng.choice(vocabulary_words) for _ in range(60)) for _ in range(4000)]
    tokenizer = build.train_tokenizer(texts, VOCABULARY)
    model = build.build("llama", tokenizer, d=d, layers=layers, heads=d // 32, context=context, **more)
    if vocabulary > len(tokenizer):
        module: Any = model.module
        module.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


class Writer:
    """Random texts of a given number of tokens."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        lengths = [(w, len(model.tokenizer(f" {w}", add_special_tokens=False)["input_ids"])) for w in words()]
        self.single = [w for w, n in lengths if n == 1]
        self.draw = random.Random(seed)

    def __call__(self, tokens: int) -> str:
        """Return words without a leading space; the first may be tokenized differently from the rest."""
        return " ".join(self.draw.choice(self.single) for _ in range(tokens))


def ragged(model: Model, count: int, completions: int = 1, seed: int = 0) -> list[list[str]]:
    """Prompts of 60-330 tokens, each with completions of 10-55."""
    write = Writer(model, seed)
    rng = random.Random(seed + 1)
    return [
        [write(rng.randint(60, 330)), *(write(rng.randint(10, 55)) for _ in range(completions))] for _ in range(count)
    ]


def saved(model: Model) -> str:
    """Save the model and return its folder, for libraries that load their own."""
    folder = tempfile.mkdtemp(prefix="didact-bench-")
    model.save(folder)
    return folder


def measured(work: Callable[[], Any], items: float, warm_up: Callable[[], Any] | None = None) -> dict[str, Any]:
    """Run `work` on `items` items; return seconds, rate, peak memory above the start, and its value."""
    if warm_up is not None:
        warm_up()
    gc.collect()
    before = _resident()
    _forget_peak()
    start = time.perf_counter()
    value = work()
    elapsed = time.perf_counter() - start
    return {"seconds": elapsed, "rate": items / elapsed, "peak_mib": (_peak() - before) / 2**20, "value": value}


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _resident() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024
