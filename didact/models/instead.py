"""Temporary replacement of the forward pass of submodules."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def running(ways: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward pass of each submodule inside by `ways[submodule](submodule, *inputs)`."""
    for part, way in ways.items():
        part.forward = types.MethodType(way, part)  # bound, so that a copy runs its own original forward
    try:
        yield
    finally:
        for part in ways:
            del part.forward
