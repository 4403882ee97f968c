"""Direct preference optimisation (DPO): the standard preference baseline."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from didact.bounds import Positive, Smoothing
from didact.learn import pairs
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Preference, Result


@method(
    "dpo",
    paper="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    year=2023,
    source="arXiv:2305.18290",
    protocol=("prefer",),
    baseline=True,
)
def dpo(
    model: Model,
    preferences: Sequence[Preference],
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=32, warmup=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model to prefer one completion to another, without a reward model.

        L = -mean log sigmoid(beta ((logp_w - ref_w) - (logp_l - ref_l)))

    logp is the SUM over completion tokens; ref is the initial model.

    Args:
        model: a causal or seq2seq model; left unchanged, a trained copy is returned.
        preferences: prompts with a chosen and a rejected completion.
        beta: strength of the pull towards the initial model; larger stays closer.
        label_smoothing: the share of pairs assumed to be labelled the wrong way round.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """

    def loss(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
        return preference.dpo(logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1], beta, label_smoothing)

    trained = pairs.train(
        model, pairs.groups(model, preferences), loss, fit, reference=model, log=pairs.margins(beta), hooks=hooks,
        name="dpo",
    )  # fmt: skip
    return trained.result()
