"""A procedure's calls to a server against the bare HTTP calls: 32 at once, answered after 50 ms each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import problems
from didact.infer import ask, remote

CALLS, AT_ONCE, DELAY = 1024, 32, 0.05
SERVER = f"""
import asyncio, json
REPLY = json.dumps({{"model": "m", "usage": {{"total_tokens": 12}},
                    "choices": [{{"text": " 42", "message": {{"content": " 42"}}, "finish_reason": "stop"}}]}}).encode()

async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            size = next(line for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size[15:]))
            await asyncio.sleep({DELAY})
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\n")
            writer.write(b"content-length: %d\\r\\n\\r\\n%s" % (len(REPLY), REPLY))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def _server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def _prompts() -> list[str]:
    return [f"What is {n} + {n}?" for n in range(CALLS)]


def procedure() -> dict[str, Any]:
    """`ask.Asker` with its cache, each answer parsed: all prompts of a round at once."""
    with _server() as url:
        asker = ask.Asker(remote.connect(url, "m", parallel=AT_ONCE), ask.Asking(max_new_tokens=8))
        warm = ask.Asker(asker.lm, asker.how)
        return problems.measured(
            lambda: sum(n == 42 for n in asker.ask(_prompts(), int)), CALLS, lambda: warm.ask(["Hello?"], int)
        )


def plain() -> dict[str, Any]:
    """The same requests by httpx alone: nothing cached or retried, only the text parsed."""
    import httpx2

    with _server() as url:

        async def calls(prompts: list[str]) -> int:
            semaphore = asyncio.Semaphore(AT_ONCE)
            async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=AT_ONCE), trust_env=False) as client:

                async def call(prompt: str) -> int:
                    body = {"model": "m", "prompt": prompt, "max_tokens": 8, "temperature": 0.0, "seed": 0}
                    async with semaphore:
                        response = await client.post(f"{url}/completions", json=body)
                    return int(json.loads(response.content)["choices"][0]["text"])

                return sum(n == 42 for n in await asyncio.gather(*map(call, prompts)))

        return problems.measured(lambda: asyncio.run(calls(_prompts())), CALLS, lambda: asyncio.run(calls(["Hello?"])))
