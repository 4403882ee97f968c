"""The cost of models: tokens and floating-point operations of every forward pass in this process.

A token counts once per forward pass of any model and three times when it is trained (forward and
backward); padding counts, for it is computed; tokens in a key/value cache do not, for they are not.
A hook on the input embedding, which every pass goes through once, does the counting, so that sampling,
references and scoring are all included.
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
    """The cost of a `share` of a precomputation whose extent grows with the training's steps, up to the whole."""

    tokens: int
    flops: float
    seconds: float
    share: float


@dataclass
class Meter:
    """Tokens and operations since `began` (seconds), those of `parts` included."""

    tokens: int = 0
    flops: float = 0.0
    began: float = field(default_factory=time.monotonic)
    parts: list[Part] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.began


_RUNNING: list[Meter] = []


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Count everything that models compute inside; meters may nest."""
    meter = Meter()
    _RUNNING.append(meter)
    try:
        yield meter
    finally:
        _RUNNING.remove(meter)


@contextlib.contextmanager
def partly(share: float) -> Iterator[None]:
    """Record the cost inside as a `Part`: this share of a precomputation that is done only as far as training needs."""
    with metered() as meter:
        yield
    part = Part(meter.tokens, meter.flops, meter.seconds, share)
    for outer in _RUNNING:
        outer.parts.append(part)


@contextlib.contextmanager
def unmetered() -> Iterator[None]:
    """Count nothing inside: monitoring is not part of a training's cost."""
    running, _RUNNING[:] = list(_RUNNING), []
    try:
        yield
    finally:
        _RUNNING[:] = running


_SPENT: defaultdict[str, float] = defaultdict(float)


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the seconds inside to those spent on `name`; if it is nested in itself, the outermost counts."""
    start, before = time.monotonic(), _SPENT[name]
    try:
        yield
    finally:
        _SPENT[name] = before + time.monotonic() - start


def spent(name: str) -> float:
    """Seconds that this process has spent on `name` so far."""
    return _SPENT[name]


class Count:
    """The hook on one model's input embedding."""

    def __init__(self, weights: int) -> None:
        self.weights = weights

    def __call__(self, embedding: nn.Module, args: tuple[Any, ...]) -> None:
        """Add one forward pass over `args[0]`, token ids of any shape."""
        count(args[0].numel(), self.weights, torch.is_grad_enabled())


def count(tokens: int, weights: int, trained: bool = False) -> None:
    """Add a pass of a model with `weights` weights, wherever it was computed."""
    for meter in _RUNNING:
        meter.tokens += tokens * (3 if trained else 1)
        meter.flops += tokens * weights * (FORWARD + BACKWARD * trained)


def watch(module: Any) -> None:
    """Count this model's forward passes from now on; repeated calls change nothing, and deep copies are counted too."""
    if not hasattr(module, "get_input_embeddings"):
        return
    embedding: Any = module.get_input_embeddings()
    if embedding is not None and not any(isinstance(h, Count) for h in embedding._forward_pre_hooks.values()):
        embedding.register_forward_pre_hook(Count(weights(module)))


def weights(module: nn.Module) -> int:
    """Number of weights, also where several are packed in a byte."""
    packed = [getattr(p, "quant_state", None) for p in module.parameters()]
    return sum(p.numel() if q is None else math.prod(q.shape) for p, q in zip(module.parameters(), packed, strict=True))
