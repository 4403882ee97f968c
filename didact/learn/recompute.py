"""Layers that are run again in the backward pass, in place of keeping what they made."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from didact.models import instead, spread
from didact.types import UserError


@contextlib.contextmanager
def layers(module: nn.Module, on: bool = True) -> Iterator[None]:
    """Every layer of a transformers model keeps only its inputs inside, in training and in evaluation mode.

    Transformers' own switch does so in training mode only, and methods that train without dropout have the other.

    Raises:
        UserError: the model has no such layers.
    """
    chosen = spread.layers(module) if on else []
    if on and not chosen:
        raise UserError("checkpointing: transformers cannot run this model's layers again; leave it out")
    with instead.running(dict.fromkeys(chosen, _run)):
        yield


def _run(layer: Any, *args: Any, **kwargs: Any) -> Any:
    plain = types.MethodType(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    return checkpoint(plain, *args, use_reentrant=False, **kwargs)
