"""Token functions on the head of a large vocabulary, their gradient made on the way forward.

A token function depends on its own token's logits alone. So its derivative in them can be made while they are there
and multiplied by the head at once: where no weight of the head is trained, no logits are kept or made again for the
backward pass. That is two products with the head in place of three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 1 << 15  # tokens of a vocabulary from which on this is how it is done
CHUNK = 1 << 26  # logits held at once by `logp` on an accelerator (256 MiB in float32)
BLOCK = 1 << 20  # on a CPU: few enough to stay in its cache
COLUMNS = 1 << 12  # fewest tokens of a vocabulary that are worth products of their own

Columns = Mapping[str, Tensor]
Piece = Callable[[Tensor, Tensor, Columns], Sequence[Tensor]]
"""Token functions `(n,)` each, of hidden states `(n, d)`, label tokens `(n,)` and columns `(n, ...)`."""


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
    """Log-prob of the label tokens `(N,)` under a linear head `weight (V, d)` that is not trained.

    d logp / d states = W[target] - softmax(W states) W
    """
    made: Any = _Logp.apply(states, weight, target)
    return made


def columns(rows: int, device: torch.device) -> int:
    """For how many tokens of a vocabulary `logp` has the logits of so many rows at once."""
    return max(COLUMNS, (BLOCK if device.type == "cpu" else CHUNK) // max(1, rows))


class _Logp(torch.autograd.Function):
    """Some rows at a time."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        found = states.new_empty(len(states))
        slope = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        rows = CHUNK // COLUMNS
        for at in range(0, len(states), rows):
            here = slice(at, at + rows)
            _softmax(states[here], weight, target[here], found[here], None if slope is None else slope[here])
        ctx.save_for_backward(*([] if slope is None else [slope]))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None


def _softmax(states: Tensor, weight: Tensor, target: Tensor, found: Tensor, slope: Tensor | None) -> None:
    """Put the log-probs of `target` into `found`, and their slope, block by block of the vocabulary.

    Exponentials are relative to the greatest logit so far, and their sums are scaled down where a greater one comes
    (Milakov and Gimelshein 2018, arXiv:1805.02867): a row's logits are never there all at once.
    """
    size = columns(len(states), states.device)
    room = states.new_empty(len(states), min(size, len(weight)))
    top, total = torch.full_like(found, -torch.inf), torch.zeros_like(found)
    said = torch.empty_like(found)
    if slope is not None:
        slope.zero_()
    for at, block in zip(range(0, len(weight), size), weight.split(size), strict=True):
        wide = len(block) == room.shape[1]
        logits = torch.mm(states, block.t(), out=room if wide else None)
        mine = (target >= at) & (target < at + len(block))
        torch.where(mine, logits.gather(1, (target - at).clamp(0, len(block) - 1)[:, None])[:, 0], said, out=said)
        higher = torch.maximum(top, logits.amax(-1))
        less = (top - higher).exp_()
        top = higher
        total.mul_(less).add_(logits.sub_(top[:, None]).exp_().sum(-1))
        if slope is not None:
            slope.mul_(less[:, None]).addmm_(logits, block)
    torch.sub(said - top, total.log(), out=found)
    if slope is not None:
        slope.div_(total[:, None]).neg_().add_(weight[target])


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
