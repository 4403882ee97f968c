"""Strangers' text, made fit to be kept and shown: no key of ours in it, nothing that no file or terminal takes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from didact.types import UserError

MASK = "***"
SHORTEST = 6  # characters: what is shorter ("EMPTY", "none") is no secret, and may well be part of an answer
CREDENTIALS = re.compile(r"(?<=://)[^\s#]*(?:@|%40)", re.IGNORECASE)  # of an address: `:key@`, `user:password@`
_KEYS: dict[str, re.Pattern[str]] = {}


def keep_secret(key: str, what: str) -> str:
    """Remember a key, so that it is masked wherever text goes from now on; the key itself.

    Raises:
        UserError: no HTTP header can carry it.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{what} holds a line end, a space or a letter that no key has; copy it anew")
    if len(key) >= SHORTEST:
        _KEYS[key] = re.compile("|".join(re.escape(form) for form in _forms(key)), re.IGNORECASE)
    return key


def masked(text: str) -> str:
    """`text` without our keys, however they are written in it (percent signs, JSON's escapes, base64)."""
    for pattern in list(_KEYS.values()):
        text = pattern.sub(MASK, text)
    return text


def without_credentials(text: str) -> str:
    """`text` without our keys and without what stands before the `@` of addresses: for messages."""
    return CREDENTIALS.sub(f"{MASK}@", masked(text))


def cleaned(value: Any) -> Any:
    """A JSON value without our keys, and without halves of surrogate pairs, which no file takes."""
    if isinstance(value, str):
        whole = value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return masked(whole)
    if isinstance(value, dict):
        return {cleaned(name): cleaned(item) for name, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def _forms(key: str) -> Iterator[str]:
    yield from sorted({key, quote(key, safe=""), json.dumps(key)[1:-1]}, key=len, reverse=True)
    for before in range(3):  # how many bytes of a base64 group what stands before it takes
        bits = 8 * (before + len(key))
        inside = base64.b64encode(bytes(before) + key.encode()).decode()[-(-8 * before // 6) : bits // 6]
        yield from {inside, inside.translate(str.maketrans("+/", "-_"))}
