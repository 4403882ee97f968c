"""What models compute: tokens and floating-point operations of every forward pass, whoever makes it.

A token counts once per forward pass of any model and three times when it is trained (forward and
backward); padding counts, for it is computed; what a key/value cache holds does not, for it is not.
Counting sits on the input embedding, which every pass goes through once, so sampling, references and
scoring are all seen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from didact.parallel.work import BACKWARD, FORWARD


@dataclass(frozen=True)
class Part:
    """What a share of something took that grows with the steps of a training until it is whole."""

    tokens: int
    flops: float
    seconds: float
    share: float


@dataclass
class Meter:
    """Tokens and operations since it was started, and when that was; `parts` are in them."""

    tokens: int = 0
    flops: float = 0.0
    began: float = field(default_factory=time.monotonic)
    parts: list[Part] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall time since it was started."""
        return time.monotonic() - self.began


_RUNNING: list[Meter] = []


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Count everything models compute inside; meters may nest."""
    meter = Meter()
    _RUNNING.append(meter)
    try:
        yield meter
    finally:
        _RUNNING.remove(meter)


@contextlib.contextmanager
def partly(share: float) -> Iterator[None]:
    """What is computed inside is this share of something that is only computed as far as training will see it."""
    with metered() as own:
        yield
    part = Part(own.tokens, own.flops, own.seconds, share)
    for meter in _RUNNING:
        meter.parts.append(part)


@contextlib.contextmanager
def unmetered() -> Iterator[None]:
    """Count nothing inside: what looks at a training is none of its cost."""
    running, _RUNNING[:] = list(_RUNNING), []
    try:
        yield
    finally:
        _RUNNING[:] = running


_SPENT: defaultdict[str, float] = defaultdict(float)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Count the seconds inside as spent on `what`; where it nests in itself, the outermost counts."""
    began, before = time.monotonic(), _SPENT[what]
    try:
        yield
    finally:
        _SPENT[what] = before + time.monotonic() - began


def spent(what: str) -> float:
    """Seconds this process has spent on `what` so far."""
    return _SPENT[what]


class Count:
    """The hook on one model's input embedding."""

    def __init__(self, weights: int) -> None:
        self.weights = weights

    def __call__(self, embedding: nn.Module, given: tuple[Any, ...]) -> None:
        """Add one forward pass over `given[0]`, token ids of any shape."""
        count(given[0].numel(), self.weights, torch.is_grad_enabled())


def count(tokens: int, weights: int, trained: bool = False) -> None:
    """Add a pass of a model of so many weights, wherever it was computed."""
    for meter in _RUNNING:
        meter.tokens += tokens * (3 if trained else 1)
        meter.flops += tokens * weights * (FORWARD + BACKWARD * trained)


def watch(module: Any) -> None:
    """Count this model's forward passes from now on; once is enough, and a deep copy is counted too."""
    if not hasattr(module, "get_input_embeddings"):
        return
    embedding: Any = module.get_input_embeddings()
    if embedding is not None and not any(isinstance(h, Count) for h in embedding._forward_pre_hooks.values()):
        embedding.register_forward_pre_hook(Count(weights(module)))


def weights(module: nn.Module) -> int:
    """How many it has, also where several are in a byte."""
    packed = [getattr(p, "quant_state", None) for p in module.parameters()]
    return sum(p.numel() if q is None else math.prod(q.shape) for p, q in zip(module.parameters(), packed, strict=True))
