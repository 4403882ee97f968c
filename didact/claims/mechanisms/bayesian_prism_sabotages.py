"""Sabotages that bayesian-prism's claim must detect: a leak, another loss, and a reference that does not learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.evaluate import statistics
from didact.evaluate.references import bayes
from didact.learn import fit as loop


def unshifted(y: Tensor) -> Tensor:
    """Put each row's own target into its token."""
    return y


def unchecked(errors: Tensor, floor: Tensor, where: str) -> Any:
    """Skip the check for leaks: the claim's own test must detect it."""
    return statistics.mean_interval((errors - floor).double().mean(1).numpy())


def last_only(module: nn.Module, batch: Tensors) -> loop.Terms:
    """Train on the last position's loss only."""
    errors = (module(batch["x"], batch["y"]) - batch["y"]).square()[:, -1]
    return {"mse": loop.Term(errors.sum(), "rows")}


def unlearned(parts: Sequence[bayes.Predictor], alpha: Any) -> bayes.Predictor:
    """Keep the mixture's weights at the prior, whatever the labels."""
    shares = torch.as_tensor(np.asarray(alpha, float))

    def predict(x: Tensor, y: Tensor) -> bayes.Posterior:
        posteriors = [part(x, y) for part in parts]
        mean = (torch.stack([f.mean for f in posteriors], -1) * shares).sum(-1)
        beta = shares.expand(*mean.shape, len(parts))
        return bayes.Posterior(mean, sum(f.logp for f in posteriors), beta)  # type: ignore[arg-type]  # sum() may be the int 0 to mypy

    return predict
