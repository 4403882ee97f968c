"""Direct preference optimisation: the preference baseline people use today."""

from __future__ import annotations

from collections.abc import Sequence

from didact.learn import preferences as learner
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Preference, Result, UserError


@method(
    "dpo",
    paper="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    year=2023,
    source="arXiv:2305.18290",
    protocol="prefer",
    baseline=True,
)
def dpo(
    model: Model,
    preferences: Sequence[Preference],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=32, warmup=0.1),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Teach a model to prefer one completion to another, without a reward model.

        L = -mean log sigmoid(beta ((logp_w - ref_w) - (logp_l - ref_l)))

    logp is the SUM over completion tokens; ref is the model as it came.

    Args:
        model: a causal or seq2seq model; it stays as it was, a taught copy is returned.
        preferences: prompts with a chosen and a rejected completion.
        beta: how far the model may move from where it came from; larger stays closer.
        label_smoothing: the share of pairs assumed to be labelled the wrong way round.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise UserError(f"beta = {beta}, label_smoothing = {label_smoothing}: beta above 0, smoothing in [0, 0.5)")
    taught = learner.train(model, preferences, fit, beta=beta, label_smoothing=label_smoothing, hooks=hooks)
    return Result(models={"model": taught.model}, history=taught.history, cost=taught.cost)
