"""Fused LoRA layers and RMS norms on frozen weights, with custom gradients, for models with a large vocabulary.

Weights under an adapter are frozen, so that a layer needs only the gradient of its input. Autograd runs peft's
`W x + s B A x` and transformers' RMS norms as many small operations, and on a CPU each of them reads and writes all of
a layer's states. Here they accumulate in place.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from didact.models import head, instead
from didact.models.model import text_part


@contextlib.contextmanager
def layers(module: nn.Module, on: bool = True) -> Iterator[None]:
    """Use the fused forms inside, for LoRA on linear layers and frozen RMS norms; results are equal up to rounding."""
    forwards: dict[Any, Any] = {}
    if on and (getattr(text_part(getattr(module, "config", None)), "vocab_size", None) or 0) >= head.LARGE:
        from peft.tuners.lora.layer import Linear

        parts: list[Any] = [part for part in module.modules() if "forward" not in vars(part)]
        forwards = {part: _lora_forward for part in parts if type(part) is Linear}
        forwards |= {
            part: functools.partial(_rms_forward, offset=offset)
            for part in parts
            if (offset := _gain_offset(part)) is not None
        }
    with instead.running(forwards):
        yield


def _lora_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a linear layer with one plain active LoRA adapter; anything else falls back to peft's forward."""
    names, base = layer.active_adapters, layer.base_layer
    out: Tensor
    if len(names) == 1 and names[0] in layer.lora_A:
        name = names[0]
        down, up, drop = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        extra = args or kwargs or layer.disable_adapters or layer.merged or layer.lora_variant
        extra = (
            extra or base.weight.requires_grad or up.bias is not None or (layer.training and getattr(drop, "p", 0.0))
        )
        if not extra and all(_is_plain_linear(part, x) for part in (base, down, up)):
            out = _LowRank.apply(x, base.weight, base.bias, down.weight, up.weight, layer.scaling[name])
            return out
    out = type(layer).forward(layer, x, *args, **kwargs)
    return out


def _is_plain_linear(layer: nn.Module, x: Tensor) -> bool:
    """Whether a linear layer is only a product in single or double precision."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == x.dtype
        and _is_full_precision(x)
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
    )


def _is_full_precision(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


class _LowRank(torch.autograd.Function):
    """`W x + b + s B A x`, and its gradients in x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ down.t()).mul_(scale)
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.scale = scale
        out = nn.functional.linear(rows, weight, bias).addmm_(low, up.t())
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, low, weight, down, up = ctx.saved_tensors
        out = grad.reshape(-1, grad.shape[-1])
        d_low = (out @ up).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (out @ weight).addmm_(d_low, down).view(*grad.shape[:-1], -1)
        return d_x, None, None, d_low.t() @ rows, out.t() @ low, None


def _gain_offset(part: Any) -> float | None:
    """Return what an RMS norm adds to its weight, 0 or 1; None for other layers. Tested on numbers, not by name."""
    eps = _eps(part)
    if eps is None or [n for n, _ in part.named_parameters()] != ["weight"] or part.weight.dim() != 1:
        return None
    weight: Tensor = part.weight
    x = torch.linspace(-1, 3, len(weight), dtype=weight.dtype, device=weight.device) * eps**0.5
    with torch.no_grad():
        expected = part(x)
        matches = (
            offset
            for offset in (0.0, 1.0)
            if torch.allclose(_Normed.apply(x, weight + offset, eps), expected, 1e-4, 1e-6)
        )
        return next(matches, None)


def _eps(part: Any) -> float | None:
    eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    return eps if isinstance(eps, float) else None


def _rms_forward(part: Any, x: Tensor, offset: float) -> Tensor:
    """Run an RMS norm with a frozen weight in single precision; anything else falls back to its own forward."""
    weight = part.weight
    out: Tensor
    if weight.requires_grad or type(weight) is not nn.Parameter or {x.dtype, weight.dtype} != {torch.float32}:
        out = type(part).forward(part, x)
    else:
        out = _Normed.apply(x, weight + offset if offset else weight, _eps(part))
    return out


class _Normed(torch.autograd.Function):
    """`x r gain` with r = 1 / sqrt(mean x^2 + eps); gradient in x: `r (h - x r^2 mean(h x))` with h = grad gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        r = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, r)
        return (x * r).mul_(gain)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, r = ctx.saved_tensors
        h = grad * gain
        along = (h * x).mean(-1, keepdim=True).mul_(r**3)
        return h.mul_(r).addcmul_(x, along, value=-1), None, None
