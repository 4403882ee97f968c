"""Fetch web pages as text, limited in time and size, from public addresses only, running no scripts. Imports no torch.

Pages are untrusted: they become `Passage`s and nothing else. Addresses come from search results, which are untrusted
too: only http and https are followed, and never to this machine or its network unless allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from didact import untrusted
from didact.bounds import Count, Positive
from didact.types import Passage, UserError

HOPS = 5  # redirections followed
READABLE = ("text/html", "application/xhtml+xml", "text/plain")
PACKED = ("", "identity", "gzip", "deflate")  # content encodings that are decompressed in chunks
EXTRACTING = 10.0  # seconds to extract the text of a page


@dataclass(frozen=True, kw_only=True)
class Web:
    """How the web is searched and read.

    Args:
        pages: whether the pages of the results are fetched; else the engine's own excerpts are the documents.
        timeout: seconds for a whole answer or page.
        megabytes: most of an answer or a page that is read; the rest is cut off.
        parallel: pages fetched at once.
        local: whether pages of this machine and its network may be fetched. The engine's own address always may.
        until: results with a later `date` are left out (`2024-06-30`).
        frozen: a file of search results (JSONL). If it exists, results come from it alone and nothing is searched;
            else results are written to it, so that another run can replay this one.
    """

    pages: bool = True
    timeout: Positive = 10.0
    megabytes: Positive = 2.0
    parallel: Count = 8
    local: bool = False
    until: str = ""
    frozen: str = ""


class Fetched(NamedTuple):
    """An answer's body and type, or why there is none."""

    data: bytes = b""
    kind: str = ""
    why: str = ""


def get(
    addresses: Sequence[str], web: Web, params: Sequence[Mapping[str, str]] = (), trusted: bool = False
) -> list[Fetched]:
    """Fetch every address in parallel; `trusted` ones were set by the user and may be on this machine.

    Raises:
        UserError: the extra `remote` is missing.
    """
    try:
        import httpx2
    except ImportError:
        raise UserError("the web needs the package httpx2: pip install didact[remote]") from None

    async def fetch_all() -> list[Fetched]:
        slots = asyncio.Semaphore(web.parallel)
        # Proxies of the environment are for public addresses: a local engine is reached directly.
        async with httpx2.AsyncClient(timeout=None, trust_env=not trusted) as client:

            async def fetch_one(address: str, query: Mapping[str, str]) -> Fetched:
                async with slots:
                    try:
                        async with asyncio.timeout(web.timeout):
                            return await _fetch(client, address, query, web, trusted)
                    except TimeoutError:
                        return Fetched(why=f"no whole answer in {web.timeout:g} s")
                    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                        return Fetched(why=untrusted.prose(f"{type(error).__name__} {error}")[:200])

            queries = params or [{}] * len(addresses)
            return list(await asyncio.gather(*map(fetch_one, addresses, queries)))

    with ThreadPoolExecutor(1) as executor:  # a notebook already runs an event loop
        return executor.submit(asyncio.run, fetch_all()).result()


async def _fetch(client: Any, address: str, query: Mapping[str, str], web: Web, trusted: bool) -> Fetched:
    """Fetch one address, following redirects."""
    for _ in range(HOPS):
        if reason := await _refusal(address, web.local or trusted):
            return Fetched(why=reason)
        options = {"params": dict(query)} if query else {}
        async with client.stream("GET", address, headers={"Accept-Encoding": "identity"}, **options) as answer:
            if answer.is_redirect:
                address, query, trusted = urljoin(address, answer.headers.get("location", "")), {}, False
                continue
            if answer.status_code != 200:
                return Fetched(why=f"status {answer.status_code}")
            if (encoding := answer.headers.get("content-encoding", "")) not in PACKED:
                return Fetched(why=f"packed as {untrusted.prose(encoding)[:40]}")
            data, limit = bytearray(), int(web.megabytes * (1 << 20))
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) >= limit:
                    break
            return Fetched(
                bytes(data[:limit]), answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            )
    return Fetched(why=f"more than {HOPS} redirections")


async def _refusal(address: str, local: bool) -> str:
    """Why an address must not be fetched; empty where it may be."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "no http address"
    if local:
        return ""
    resolved = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    if any(not ipaddress.ip_address(str(row[4][0]).partition("%")[0]).is_global for row in resolved):
        return "an address of this machine or its network (--web.local allows it)"
    return ""


def fetch_passages(results: Sequence[Passage], web: Web) -> tuple[list[Passage], dict[str, int]]:
    """Replace the excerpts of search results by the text of their pages; also return how many results were dropped
    because their page could not be read, by reason."""
    out, dropped = [], dict[str, int]()
    for passage, got in zip(results, get([p.url or "" for p in results], web), strict=True):
        title, text, reason = passage.title, "", got.why
        if not reason and got.kind not in READABLE:
            reason = "no page of text"
        if not reason:
            title, text = extracted(got)
            reason = "" if text else "no text in the page"
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            out.append(Passage(text=text, title=title or passage.title, url=passage.url, extra=passage.extra))
    return out, dropped


def extracted(got: Fetched) -> tuple[str | None, str]:
    """Title and main text of a page, without scripts, menus and markup; the text is empty where there is none.

    Raises:
        UserError: the extra `web` is missing.
    """
    if got.kind == "text/plain":
        return None, got.data.decode(errors="replace")
    try:
        import trafilatura
    except ImportError:
        raise UserError("pages need the package trafilatura: pip install didact[web], or --web.pages false") from None
    try:
        with untrusted.limited(EXTRACTING):
            page: Any = trafilatura.bare_extraction(got.data, include_comments=False, with_metadata=True)
    except (Exception, untrusted.ExceededError):  # untrusted markup may break any parser
        return None, ""
    return (page.title, page.text or "") if page else (None, "")
