"""Addresses of served models. Imports no torch."""

from __future__ import annotations

import re

from didact.types import UserError

HOST = r"\[[0-9a-f:.]+\]|\w[\w-]{0,62}(?:\.\w[\w-]{0,62})*\.?"
ADDRESS = re.compile(rf"https?://(?:{HOST})(?::(?P<port>[0-9]{{1,5}}))?(?:/[^\s?\\]*)?", re.IGNORECASE)


def is_address(model: str) -> bool:
    """Return whether a model name given by the user is meant as a server's address."""
    return re.match(r"\s*[a-z][a-z0-9+.-]*://", model, re.IGNORECASE) is not None


def check_address(address: str) -> None:
    """Check that this is a server's address (`#name` allowed) without a key: it is printed, and stored in results.

    Raises:
        UserError: it is not; the message does not repeat the address, since it may contain a key.
    """
    match = ADDRESS.fullmatch(address.partition("#")[0])
    if not match or int(match["port"] or 0) > 65535:
        raise UserError(
            "the server's address: an address such as http://localhost:8000/v1 is expected, without key, user or "
            "query in it; a key goes into OPENAI_API_KEY"
        )
