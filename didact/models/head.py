"""Token functions on the head of a large vocabulary, with the gradient computed in the forward pass.

A token function depends on its own token's logits alone. So its derivative can be computed while they are in memory
and multiplied by the head at once: if no weight of the head is trained, no logits are kept or recomputed for the
backward pass. That is two products with the head instead of three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 1 << 15  # smallest vocabulary, in tokens, for which this is used
CHUNK = 1 << 26  # logits held at once by `logp` on an accelerator (256 MiB in float32)
BLOCK = 1 << 20  # on a CPU: few enough to stay in its cache
COLUMNS = 1 << 12  # fewest tokens of a vocabulary in one matrix product

Columns = Mapping[str, Tensor]
Piece = Callable[[Tensor, Tensor, Columns], Sequence[Tensor]]
"""Computes token functions, each `(n,)`, from hidden states `(n, d)`, label tokens `(n,)` and columns `(n, ...)`."""


def values(piece: Piece, states: Tensor, target: Tensor, columns: Columns, size: int) -> tuple[Tensor, ...]:
    """Compute token functions, each `(N,)`, in chunks of `size` tokens; their backward pass needs no logits.

    Args:
        piece: the functions; its result for a token depends on that token alone, and on nothing trained but `states`.
        states: hidden states `(N, d)`.
        target: label tokens `(N,)`.
        columns: further tensors `(N, ...)` without gradient.
        size: tokens of a chunk.
    """
    results: Any = _Values.apply(states, target, columns, piece, size)
    return tuple(results)


class _Values(torch.autograd.Function):
    """Values, with `d value / d states` `(N, d)` saved for each."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, target: Tensor, columns: Columns, piece: Piece, size: int) -> Any:
        parts: list[Sequence[Tensor]] = []
        slopes: list[list[Tensor]] = []
        for start in range(0, len(target), size):
            chunk = slice(start, start + size)
            with torch.enable_grad():
                leaf = states[chunk].detach().requires_grad_()
                results = piece(leaf, target[chunk], {name: column[chunk] for name, column in columns.items()})
            grads = [
                torch.autograd.grad(v, leaf, torch.ones_like(v), n + 1 < len(results))[0] if v.requires_grad else None
                for n, v in enumerate(results)
            ]
            slopes.append([torch.zeros_like(leaf) if slope is None else slope for slope in grads])
            parts.append([v.detach() for v in results])
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
    result: Any = _Logp.apply(states, weight, target)
    return result


def columns(rows: int, device: torch.device) -> int:
    """Vocabulary tokens whose logits `logp` computes at once for `rows` rows."""
    return max(COLUMNS, (BLOCK if device.type == "cpu" else CHUNK) // max(1, rows))


class _Logp(torch.autograd.Function):
    """Log-probs of the label tokens, some rows at a time."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        out = states.new_empty(len(states))
        slope = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        rows = CHUNK // COLUMNS
        for start in range(0, len(states), rows):
            chunk = slice(start, start + rows)
            _softmax(states[chunk], weight, target[chunk], out[chunk], None if slope is None else slope[chunk])
        ctx.save_for_backward(*([] if slope is None else [slope]))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None


def _softmax(states: Tensor, weight: Tensor, target: Tensor, out: Tensor, slope: Tensor | None) -> None:
    """Write the log-probs of `target` to `out` and their gradient to `slope`, block by block of the vocabulary.

    Exponentials are relative to the greatest logit so far, and their sums are rescaled when a greater one comes
    (Milakov and Gimelshein 2018, arXiv:1805.02867): a row's logits are never all in memory at once.
    """
    size = columns(len(states), states.device)
    buffer = states.new_empty(len(states), min(size, len(weight)))
    top, total = torch.full_like(out, -torch.inf), torch.zeros_like(out)
    picked = torch.empty_like(out)
    if slope is not None:
        slope.zero_()
    for start, block in zip(range(0, len(weight), size), weight.split(size), strict=True):
        fits = len(block) == buffer.shape[1]
        logits = torch.mm(states, block.t(), out=buffer if fits else None)
        here = (target >= start) & (target < start + len(block))
        torch.where(
            here, logits.gather(1, (target - start).clamp(0, len(block) - 1)[:, None])[:, 0], picked, out=picked
        )
        new_top = torch.maximum(top, logits.amax(-1))
        shrink = (top - new_top).exp_()
        top = new_top
        total.mul_(shrink).add_(logits.sub_(top[:, None]).exp_().sum(-1))
        if slope is not None:
            slope.mul_(shrink[:, None]).addmm_(logits, block)
    torch.sub(picked - top, total.log(), out=out)
    if slope is not None:
        slope.div_(total[:, None]).neg_().add_(weight[target])


def at_once(vocabulary: int) -> int:
    """Rows of logits to process at a time: all for a small vocabulary, else as many as fit in a CPU cache."""
    return max(1, BLOCK // vocabulary) if vocabulary >= LARGE else 1 << 30


def linear(layer: Any, states: Tensor) -> bool:
    """Whether `layer` is only a product with its weight, in the dtype of `states`."""
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and layer.weight.dtype == states.dtype
        and states.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(states.device.type)
    )
