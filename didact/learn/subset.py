"""Fine-tuning some of a model's weights on a few rows, in their order, and putting every bit back afterwards."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.learn.masters import Masters
from didact.models import forward
from didact.models.model import Model
from didact.models.projections import Part

Optimizer = Literal["sgd", "adam"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a few rows are learnt: without decay, clipping, warm-up or dropout, at a constant rate, in float32.

    Args:
        lr: learning rate.
        epochs: passes over the rows.
        batch: rows per step, in their order; None takes all at once.
        optimizer: plain SGD, or Adam.
        per: what the loss is a mean over: rows (of the sum over their label tokens) or label tokens.
    """

    lr: float
    epochs: int = 1
    batch: int | None = 1
    optimizer: Optimizer = "sgd"
    per: Literal["rows", "tokens"] = "rows"


def epochs(model: Model, parts: Sequence[Part], rows: Sequence[TokenizedExample], tuning: Tuning) -> Generator[float]:
    """Train these parts of the model in place; yield the mean loss of every epoch, with its weights in the model.

    When the iterator ends or is closed, every weight is restored bit for bit.
    """
    saved = [(p, p.requires_grad, p.grad) for p in model.module.parameters()]
    values = [part.weight.detach().clone() for part in parts]
    was_training, trained = model.module.training, {id(part.weight) for part in parts}
    for p, _, _ in saved:
        p.requires_grad_(id(p) in trained)
    masters = Masters({str(i): part.weight for i, part in enumerate(parts)})
    optimizer = (torch.optim.SGD if tuning.optimizer == "sgd" else torch.optim.Adam)(masters.all.values(), lr=tuning.lr)
    size = tuning.batch or len(rows)
    model.module.eval()
    try:
        for _ in range(tuning.epochs):
            batches = [rows[at : at + size] for at in range(0, len(rows), size)]
            losses = [_step(model, parts, batch, optimizer, masters, tuning.per) for batch in batches]
            yield sum(losses) / len(losses)
    finally:
        with torch.no_grad():
            for part, value in zip(parts, values, strict=True):
                part.weight.copy_(value)
        for p, requires_grad, grad in saved:
            p.requires_grad_(requires_grad)
            p.grad = grad
        model.module.train(was_training)


def _step(
    model: Model, parts: Sequence[Part], rows: Sequence[TokenizedExample], optimizer: torch.optim.Optimizer,
    masters: Masters, per: str,
) -> float:  # fmt: skip
    with torch.enable_grad():
        batch = collate(rows, model.kind, model.pad, model.start).to(model.device)
        logp = forward.tokens(model, batch)["logp"]
        loss = -logp.sum() / (len(rows) if per == "rows" else len(logp))
        optimizer.zero_grad()
        loss.backward()
    for part in parts:
        if part.mask is not None and part.weight.grad is not None:
            part.weight.grad.mul_(part.mask)
    masters.take_gradients()
    optimizer.step()
    masters.give()
    return float(loss.detach())
