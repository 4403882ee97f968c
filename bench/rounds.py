"""A round's requests to a vLLM server against the same requests alone, 32 at once: the server is named by DIDACT_VLLM.

It is started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True on a folder that is also here.
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
from didact.infer.engines import Ask
from didact.infer.generate import SamplingConfig
from didact.models import load
from didact.models.model import Model
from didact.types import Fit

PROMPTS, TOKENS = 256, 16
HOW = SamplingConfig(max_new_tokens=TOKENS, temperature=1.0)


def _begun() -> tuple[served.Served, Model, list[list[int]]]:
    """The server, seen to compute what the model does, and prompts of 4 to 40 tokens."""
    url = os.environ["DIDACT_VLLM"]
    with urllib.request.urlopen(f"{url.partition('#')[0]}/models") as listed:
        model = load.load(json.load(listed)["data"][0]["root"], device="cpu")
    engine = served.Served(url)
    engine.begin(model, Fit(lora=4))
    draw = np.random.default_rng(0)
    ids = [draw.integers(5, len(model.tokenizer), size=n).tolist() for n in draw.integers(4, 40, size=PROMPTS)]
    return engine, model, ids


def ours() -> dict[str, Any]:
    """As a round asks: each answer read, counted and kept on disk."""
    engine, model, ids = _begun()
    with engines.generating(engine), engines.collecting(model):
        return problems.measured(
            lambda: sum(len(row[0].tokens) > 0 for row in generate.completions(model, ids, 1, HOW)),
            PROMPTS, lambda: generate.completions(model, ids[:8], 1, SamplingConfig(**vars(HOW) | {"seed": 1})),
        )  # fmt: skip


def plain() -> dict[str, Any]:
    """The same requests by httpx alone, nothing kept or read."""
    import httpx2

    engine, model, ids = _begun()
    ends = generate.ends(model)
    engine.holds(model)
    bodies = [{**engine.job(Ask(tuple(p), TOKENS, 1, i), 0, 1, HOW, ends).body, "seed": i} for i, p in enumerate(ids)]

    async def calls(asked: list[dict[str, Any]]) -> int:
        limit = asyncio.Semaphore(served.AT_ONCE)
        most = httpx2.Limits(max_connections=served.AT_ONCE)
        async with httpx2.AsyncClient(limits=most, trust_env=False, timeout=None) as client:

            async def one(body: dict[str, Any]) -> bool:
                async with limit:
                    return (await client.post(f"{engine.url}/completions", json=body)).status_code == 200

            return sum(await asyncio.gather(*map(one, asked)))

    return problems.measured(lambda: asyncio.run(calls(bodies)), PROMPTS, lambda: asyncio.run(calls(bodies[:8])))
