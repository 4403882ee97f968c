"""Activation checkpointing: layers run again in the backward pass instead of keeping their activations."""

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
    """Inside the block every layer of a transformers model keeps only its inputs, in training and in evaluation mode.

    Transformers' own switch works in training mode only, and methods without dropout train in evaluation mode.

    Raises:
        UserError: the model has no layers that support it.
    """
    supported = spread.layers(module) if on else []
    if on and not supported:
        raise UserError("checkpointing: transformers does not support it for this model; leave it out")
    with instead.running(dict.fromkeys(supported, _run)):
        yield


def _run(layer: Any, *args: Any, **kwargs: Any) -> Any:
    run_forward = types.MethodType(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return run_forward(*args, **kwargs)
    return checkpoint(run_forward, *args, use_reentrant=False, **kwargs)
