"""Divergence between two models on given answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions


def mean_kl(model: Model, other: Model, rows: Sequence[TokenizedExample]) -> float:
    """Mean KL(model || other) over label tokens, in nats."""
    total, count = 0.0, 0
    for i in range(0, len(rows), 32):
        batch = collate(rows[i : i + 32], model.kind, model.pad, model.start).to(model.device)
        with torch.no_grad():
            reference = (other, forward.label_states(other, batch))
            kl = forward.tokens(model, batch, {"kl": token_functions.kl_to}, reference=reference)["kl"]
        total, count = total + float(kl.sum()), count + len(kl)
    return total / count
