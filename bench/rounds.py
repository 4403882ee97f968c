"""A round's requests to the vLLM server that DIDACT_VLLM names, against the bare HTTP requests, 32 at once.

Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True on a model folder that this machine can read.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from typing import Any

import numpy as np

from bench import problems
from didact.infer import engines, generate, served
from didact.infer.engines import Request
from didact.infer.generate import SamplingConfig
from didact.models import load
from didact.models.model import Model
from didact.types import Fit

PROMPTS, TOKENS = 256, 16
HOW = SamplingConfig(max_new_tokens=TOKENS, temperature=1.0)


def _connect() -> tuple[served.Served, Model, list[list[int]]]:
    """The server, after the check that it computes what the model does, the model, and prompts of 4 to 40 tokens."""
    url = os.environ["DIDACT_VLLM"]
    with urllib.request.urlopen(f"{url.partition('#')[0]}/models") as response:
        model = load.load(json.load(response)["data"][0]["root"], device="cpu")
    engine = served.Served(url)
    engine.begin(model, Fit(lora=4))
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, len(model.tokenizer), size=n).tolist() for n in rng.integers(4, 40, size=PROMPTS)]
    return engine, model, ids


def ours() -> dict[str, Any]:
    """The requests of a round: each answer parsed, counted and cached on disk."""
    engine, model, ids = _connect()
    with engines.generating(engine), engines.collecting(model):
        return problems.measured(
            lambda: sum(len(row[0].tokens) > 0 for row in generate.completions(model, ids, 1, HOW)),
            PROMPTS, lambda: generate.completions(model, ids[:8], 1, SamplingConfig(**vars(HOW) | {"seed": 1})),
        )  # fmt: skip


def plain() -> dict[str, Any]:
    """The same requests by httpx alone: nothing cached or parsed."""
    import httpx2

    engine, model, ids = _connect()
    ends = generate.ends(model)
    engine.load_weights(model)
    bodies = [
        {**engine.job(Request(tuple(p), TOKENS, 1, i), 0, 1, HOW, ends).body, "seed": i} for i, p in enumerate(ids)
    ]

    async def calls(bodies: list[dict[str, Any]]) -> int:
        semaphore = asyncio.Semaphore(served.AT_ONCE)
        limits = httpx2.Limits(max_connections=served.AT_ONCE)
        async with httpx2.AsyncClient(limits=limits, trust_env=False, timeout=None) as client:

            async def call(body: dict[str, Any]) -> bool:
                async with semaphore:
                    return (await client.post(f"{engine.url}/completions", json=body)).status_code == 200

            return sum(await asyncio.gather(*map(call, bodies)))

    return problems.measured(lambda: asyncio.run(calls(bodies)), PROMPTS, lambda: asyncio.run(calls(bodies[:8])))
