"""Speed as ratios in one run: a JSON line `{"bench", "ours", "peer", "ratio", "unit"}` each.

`make bench` refuses a busy machine: a ratio measured beside another job says nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from didact.data.encode import Row
from didact.data.streams import by_length, collate
from didact.models import build, forward
from didact.objectives import tokens

BUSY = 0.5  # load average above which nothing is timed


def rows(count: int = 64) -> list[Row]:
    """Ragged prompts of 60-330 tokens with completions of 10-55."""
    draw = np.random.default_rng(0)
    lengths = zip(draw.integers(60, 330, count), draw.integers(10, 55, count), strict=True)
    return [Row(tuple(draw.integers(3, 8000, p)), tuple(draw.integers(3, 8000, c))) for p, c in lengths]


def seconds(work: Callable[[], None], times: int = 3) -> float:
    """Best of a few runs, after one to warm up."""
    work()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def label_tokens() -> tuple[float, float, str]:
    """Loss on completions: sorted by length, head on label tokens, against padding in order and full logits."""
    tokenizer = build.train_tokenizer(["a"], 300)
    model = build.build("llama", tokenizer, d=128, layers=4, heads=4, context=512)
    model.module.resize_token_embeddings(8192)
    data = rows()

    def ours() -> None:
        for group in by_length([r.size for r in data], 4096):
            batch = collate([data[i] for i in group])
            (-forward.tokens(model, batch, {"logp": tokens.logp})["logp"].sum()).backward()
        model.module.zero_grad()

    def plain() -> None:
        for at in range(0, len(data), 16):
            batch = collate(data[at : at + 16])
            logits = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
            loss.backward()
        model.module.zero_grad()

    return len(data) / seconds(ours), len(data) / seconds(plain), "examples/s"


def start_up() -> tuple[float, float, str]:
    """`didact --help` against importing torch alone."""

    def command(*words: str) -> Callable[[], None]:
        return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True) and None

    return seconds(command("-m", "didact.cli", "--help")), seconds(command("-c", "import torch")), "s"


def main() -> int:
    """Time everything, or refuse."""
    load = os.getloadavg()[0]
    if load > BUSY and "--anyway" not in sys.argv:
        print(f"the machine is busy (load {load:.2f} > {BUSY}): nothing is timed", file=sys.stderr)
        return 3
    described = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    cpu = described[0].split(":")[1].strip() if described else ""
    versions = {p: metadata.version(p) for p in ("torch", "transformers")}
    print(json.dumps({"cpu": cpu, "threads": torch.get_num_threads(), "load": load, **versions}))
    for bench in (label_tokens, start_up):
        ours, peer, unit = bench()
        numbers = {"ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / peer, 2)}
        print(json.dumps({"bench": bench.__name__, **numbers, "unit": unit}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
