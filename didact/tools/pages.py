"""Pages of the web as text, within bounds: of time and size, from public addresses, nothing run. Imports no torch.

What a page says is a stranger's: it becomes a `Passage` and nothing else. Addresses come from search results, which
are a stranger's too, so that only http and https are followed, and never to this machine or its network unless allowed.
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
PACKED = ("", "identity", "gzip", "deflate")  # content encodings that are unpacked piece by piece
EXTRACTING = 10.0  # seconds to find the text in a page


@dataclass(frozen=True, kw_only=True)
class Web:
    """How the web is read.

    Args:
        pages: whether the pages found are fetched; else the engine's own excerpts are the documents.
        timeout: seconds for the whole of an answer or a page.
        megabytes: of an answer or a page; what is beyond is not read.
        parallel: pages under way at once.
        local: whether pages of this machine and its network may be fetched. The engine itself always may be one.
        until: results with a later `date` are left out (`2024-06-30`).
        frozen: a file of search results (JSONL). Where it is there, it is all there is to find, and nothing is
            searched; else what is found is written to it, so that another run replays this one.
    """

    pages: bool = True
    timeout: Positive = 10.0
    megabytes: Positive = 2.0
    parallel: Count = 8
    local: bool = False
    until: str = ""
    frozen: str = ""


class Got(NamedTuple):
    """An answer's body and type, or why there is none."""

    data: bytes = b""
    kind: str = ""
    why: str = ""


def get(
    addresses: Sequence[str], web: Web, params: Sequence[Mapping[str, str]] = (), trusted: bool = False
) -> list[Got]:
    """What stands at every address; `trusted` ones were given by the user and may be on this machine.

    Raises:
        UserError: the extra `remote` is missing.
    """
    try:
        import httpx2
    except ImportError:
        raise UserError("the web needs the package httpx2: pip install didact[remote]") from None

    async def everything() -> list[Got]:
        slots = asyncio.Semaphore(web.parallel)
        # Environment proxies are for the world outside: an engine on this machine is reached directly.
        async with httpx2.AsyncClient(timeout=None, trust_env=not trusted) as client:

            async def one(address: str, query: Mapping[str, str]) -> Got:
                async with slots:
                    try:
                        async with asyncio.timeout(web.timeout):
                            return await _followed(client, address, query, web, trusted)
                    except TimeoutError:
                        return Got(why=f"no whole answer in {web.timeout:g} s")
                    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                        return Got(why=untrusted.prose(f"{type(error).__name__} {error}")[:200])

            queries = params or [{}] * len(addresses)
            return list(await asyncio.gather(*map(one, addresses, queries)))

    with ThreadPoolExecutor(1) as aside:  # a notebook has a loop of its own
        return aside.submit(asyncio.run, everything()).result()


async def _followed(client: Any, address: str, query: Mapping[str, str], web: Web, trusted: bool) -> Got:
    """One address and where it leads to."""
    for _ in range(HOPS):
        if why := await _forbidden(address, web.local or trusted):
            return Got(why=why)
        more = {"params": dict(query)} if query else {}
        async with client.stream("GET", address, headers={"Accept-Encoding": "identity"}, **more) as answer:
            if answer.is_redirect:
                address, query, trusted = urljoin(address, answer.headers.get("location", "")), {}, False
                continue
            if answer.status_code != 200:
                return Got(why=f"status {answer.status_code}")
            if (packed := answer.headers.get("content-encoding", "")) not in PACKED:
                return Got(why=f"packed as {untrusted.prose(packed)[:40]}")
            data, most = bytearray(), int(web.megabytes * (1 << 20))
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) >= most:
                    break
            return Got(bytes(data[:most]), answer.headers.get("content-type", "").partition(";")[0].strip().lower())
    return Got(why=f"more than {HOPS} redirections")


async def _forbidden(address: str, local: bool) -> str:
    """Why an address is not followed; empty where it may be."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "no http address"
    if local:
        return ""
    found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    if any(not ipaddress.ip_address(str(row[4][0]).partition("%")[0]).is_global for row in found):
        return "an address of this machine or its network (--web.local allows it)"
    return ""


def fetched(found: Sequence[Passage], web: Web) -> tuple[list[Passage], dict[str, int]]:
    """Search results with the text of their pages in place of the excerpts, those that cannot be read left out; and
    how many were left out, by reason."""
    out, lost = [], dict[str, int]()
    for passage, got in zip(found, get([p.url or "" for p in found], web), strict=True):
        title, text, why = passage.title, "", got.why
        if not why and got.kind not in READABLE:
            why = "no page of text"
        if not why:
            title, text = extracted(got)
            why = "" if text else "no text in the page"
        if why:
            lost[why] = lost.get(why, 0) + 1
        else:
            out.append(Passage(text=text, title=title or passage.title, url=passage.url, extra=passage.extra))
    return out, lost


def extracted(got: Got) -> tuple[str | None, str]:
    """Title and main text of a page, without scripts, menus and markup; empty where there is none.

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
    except (Exception, untrusted.ExceededError):  # a stranger's markup may break any parser
        return None, ""
    return (page.title, page.text or "") if page else (None, "")
