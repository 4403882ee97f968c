"""Attribution of an answer to feed-forward neurons: integrated gradients of its probability in their activations.

Source: Wu et al. 2023, DEPN: Detecting and Editing Privacy Neurons, arXiv:2310.20138.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.models import forward
from didact.models.model import Model
from didact.types import UserError


def down_projections(model: Model) -> list[Any]:
    """Return the feed-forward down projection of every block, in order.

    Raises:
        UserError: there is none with a known name.
    """
    names = ("down_proj", "mlp.c_proj", "fc2", "dense_4h_to_h")
    projections = [m for n, m in model.module.named_modules() if n.endswith(names) and hasattr(m, "weight")]
    if not projections:
        raise UserError("no feed-forward down projection (down_proj, mlp.c_proj, fc2, dense_4h_to_h) in this model")
    return projections


def integrated_gradients(probability: Any, activation: Tensor, steps: int) -> Tensor:
    """Integrated gradients `w/m sum_k dP(w k/m)/dw` of `probability(w) -> ()`, in the shape of `activation`."""
    total = torch.zeros_like(activation)
    for k in range(1, steps + 1):
        w = (activation * (k / steps)).detach().requires_grad_()
        (grad,) = torch.autograd.grad(probability(w), w)
        total += grad
    return activation / steps * total


def attributions(model: Model, row: TokenizedExample, steps: int) -> Tensor:
    """Attribution of every neuron of every block to one answer, `(blocks, width)`, summed over positions."""
    batch = collate([row], model.kind, model.pad, model.start).to(model.device)
    activations: dict[int, Tensor] = {}

    def probability() -> Tensor:
        return forward.tokens(model, batch)["logp"].exp().mean()

    layers = down_projections(model)
    handles = [
        layer.register_forward_pre_hook(lambda m, args, i=i: activations.__setitem__(i, args[0].detach()))
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        probability()
    for handle in handles:
        handle.remove()
    out = []
    for i, layer in enumerate(layers):

        def with_activation(w: Tensor, layer: Any = layer) -> Tensor:
            handle = layer.register_forward_pre_hook(lambda m, args: (w, *args[1:]))
            try:
                return probability()
            finally:
                handle.remove()

        out.append(integrated_gradients(with_activation, activations[i], steps).flatten(0, -2).sum(0))
    return torch.stack(out)


@torch.no_grad()
def switch_off(model: Model, layer: int, neuron: int) -> None:
    """Set a neuron's column of its block's down projection to zero, in place."""
    down = down_projections(model)[layer]
    # GPT-2's Conv1D holds its weight transposed.
    (down.weight[:, neuron] if isinstance(down, nn.Linear) else down.weight[neuron]).zero_()
