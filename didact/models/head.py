"""Token functions on the head of a large vocabulary, their gradient made on the way forward.

A token function depends on its own token's logits alone. So its derivative in them can be made while they are there
and multiplied by the head at once: where no weight of the head is trained, no logits are kept or made again for the
backward pass. That is two products with the head in place of three.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 1 << 15  # tokens of a vocabulary from which on this is how it is done
CHUNK = 1 << 26  # logits held at once by `logp` (256 MiB in float32): with fewer rows the products are slower
BLOCK = 1 << 20  # of them exponentiated at once: few enough to stay in a processor's cache
_ROOM: list[Tensor | None] = []  # the buffer of `logp`, once for every `kept` that is open

Columns = Mapping[str, Tensor]
Piece = Callable[[Tensor, Tensor, Columns], Sequence[Tensor]]
"""Token functions `(n,)` each, of hidden states `(n, d)`, label tokens `(n,)` and columns `(n, ...)`."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """The buffer of `logp` is the same inside: a new one each time costs a page fault every 4 KiB."""
    _ROOM.append(_ROOM[-1] if _ROOM else None)
    try:
        yield
    finally:
        _ROOM.pop()


def _room(weight: Tensor) -> Tensor:
    """Room `(n, V)` for the logits of as many tokens as are done at once."""
    shape = (max(1, CHUNK // len(weight)), len(weight))
    room = _ROOM[-1] if _ROOM else None
    if room is None or room.shape != shape or room.dtype != weight.dtype or room.device != weight.device:
        room = weight.new_empty(shape)
        _ROOM[-1:] = [room] if _ROOM else []
    return room


def values(piece: Piece, states: Tensor, target: Tensor, columns: Columns, size: int) -> tuple[Tensor, ...]:
    """Token functions `(N,)` each in chunks of `size` tokens, whose backward pass needs no logits.

    Args:
        piece: the functions; its result for a token depends on that token alone, and on nothing trained but `states`.
        states: hidden states `(N, d)`.
        target: label tokens `(N,)`.
        columns: further tensors `(N, ...)` without gradient.
        size: tokens of a chunk.
    """
    made: Any = _Values.apply(states, target, columns, piece, size)
    return tuple(made)


class _Values(torch.autograd.Function):
    """Values, with `d value / d states` `(N, d)` kept for each."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, target: Tensor, columns: Columns, piece: Piece, size: int) -> Any:
        parts: list[Sequence[Tensor]] = []
        slopes: list[list[Tensor]] = []
        for at in range(0, len(target), size):
            here = slice(at, at + size)
            with torch.enable_grad():
                own = states[here].detach().requires_grad_()
                found = piece(own, target[here], {name: column[here] for name, column in columns.items()})
            each = [
                torch.autograd.grad(v, own, torch.ones_like(v), n + 1 < len(found))[0] if v.requires_grad else None
                for n, v in enumerate(found)
            ]
            slopes.append([torch.zeros_like(own) if slope is None else slope for slope in each])
            parts.append([v.detach() for v in found])
        ctx.save_for_backward(*(torch.cat(s) for s in zip(*slopes, strict=True)))
        return tuple(torch.cat(p) for p in zip(*parts, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        slopes = ctx.saved_tensors
        return sum(g[:, None].to(s) * s for g, s in zip(grads, slopes, strict=True)), None, None, None, None


def logp(states: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Log-prob of the label tokens `(N,)` under a linear head `weight (V, d)` that is not trained; all in place.

    d logp / d states = W[target] - softmax(W states) W
    """
    made: Any = _Logp.apply(states, weight, target)
    return made


class _Logp(torch.autograd.Function):
    """Logits of a chunk, then their exponentials, in one buffer that serves all chunks."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        room = _room(weight)
        size = len(room)
        found = states.new_empty(len(states))
        slope = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for at in range(0, len(states), size):
            here = slice(at, at + size)
            own, label = states[here], target[here]
            logits = torch.mm(own, weight.t(), out=room[: len(own)])
            said = logits.gather(1, label[:, None])[:, 0]
            top, total = torch.empty_like(said), torch.empty_like(said)
            rows = max(1, BLOCK // len(weight))
            for block, t, n in zip(logits.split(rows), top.split(rows), total.split(rows), strict=True):
                torch.amax(block, -1, out=t)
                torch.sum(block.sub_(t[:, None]).exp_(), -1, out=n)
            found[here] = said - top - total.log()
            if slope is not None:
                torch.mm(logits, weight, out=slope[here])
                slope[here].div_(total[:, None]).neg_().add_(weight[label])
        ctx.save_for_backward(*([] if slope is None else [slope]))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None


def at_once(vocabulary: int) -> int:
    """How many rows of logits are worked on at a time: all of a small vocabulary, else what stays in a cache."""
    return max(1, BLOCK // vocabulary) if vocabulary >= LARGE else 1 << 30


def linear(layer: Any, states: Tensor) -> bool:
    """Whether `layer` is no more than a product with its weight, in the type of `states`."""
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and layer.weight.dtype == states.dtype
        and states.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(states.device.type)
    )
