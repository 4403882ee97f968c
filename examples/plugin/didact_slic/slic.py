"""SLiC-HF: a margin between two completions' log-likelihoods, regularised by the likelihood of the better one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from didact.bounds import NonNegative, Positive
from didact.learn import pairs
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Preference, Result


@method(
    "slic",
    paper="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    year=2023,
    source="arXiv:2305.10425",
    protocol=("prefer",),
)
def slic(
    model: Model,
    preferences: Sequence[Preference],
    *,
    delta: Positive = 1.0,
    weight: NonNegative = 0.1,
    fit: Fit = Fit(lr=1e-5, epochs=1, rows=32),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model until the better completion is likelier by a margin, and no further.

        L = mean max(0, delta - logp_w + logp_l) - weight logp_w

    Args:
        model: a causal or seq2seq model; a trained copy is returned.
        preferences: prompts with a chosen and a rejected completion.
        delta: the margin, in nats of the whole completions.
        weight: weight of the better completion's log-likelihood.
        fit: how to train.
        hooks: called around every step.
    """

    def loss(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
        return (delta - logp[:, 0] + logp[:, 1]).clamp(min=0) - weight * logp[:, 0]

    return pairs.train(model, pairs.groups(model, preferences), loss, fit, hooks=hooks, name="slic").result()
