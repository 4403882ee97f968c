"""SimPO: preference optimisation without a reference model, on mean log-probs per token."""

from __future__ import annotations

from collections.abc import Sequence

from didact.bounds import NonNegative, Positive
from didact.learn import pairs
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Preference, Result

PRESETS: dict[str, dict[str, object]] = {
    "llama3-base": {},
    "llama3-instruct": {"beta": 2.5, "gamma": 1.4, "fit.lr": 1e-6},
    "mistral-base": {"gamma": 1.6, "fit.lr": 3e-7},
    "mistral-instruct": {"beta": 2.5, "gamma": 0.3, "fit.lr": 5e-7},
}


@method(
    "simpo",
    paper="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    year=2024,
    source="arXiv:2405.14734",
    protocol=("prefer",),
    presets=PRESETS,
    baseline=True,
)
def simpo(
    model: Model,
    preferences: Sequence[Preference],
    *,
    beta: Positive = 2.0,
    gamma: NonNegative = 1.0,
    fit: Fit = Fit(lr=6e-7, epochs=1, rows=128, schedule="cosine", warmup=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model to prefer one completion to another by a margin, with neither reward model nor reference.

        L = -mean log sigmoid(beta (logp_w / |y_w| - logp_l / |y_l|) - gamma)

    The reward of a completion is its MEAN log-prob, which does not grow with length. Only a small learning rate keeps
    the model near its start: tune the learning rate first.

    Args:
        model: a causal or seq2seq model; left unchanged, a trained copy is returned.
        preferences: prompts with a chosen and a rejected completion.
        beta: scale of the mean log-probs.
        gamma: target margin between the scaled means.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    loss = preference.pair_loss("simpo", beta, gamma)
    trained = pairs.train(
        model, pairs.groups(model, preferences), loss.loss, fit, mean=loss.mean, log=pairs.margins(beta), hooks=hooks,
        name="simpo",
    )  # fmt: skip
    return trained.result()
