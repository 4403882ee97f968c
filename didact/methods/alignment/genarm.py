"""GenARM: an autoregressive reward model guides the decoding of a frozen language model, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from didact.bounds import Positive, Smoothing
from didact.learn import pairs
from didact.learn.fit import Hook, NoDropout
from didact.models import load, logit_ensemble
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Preference, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "full": {"beta_r": 0.1, "fit.lora": 0, "fit.lr": 5e-7, "fit.epochs": 3, "fit.schedule": "linear",
             "fit.warmup": 0.3, "fit.weight_decay": 0.0},  # Tulu 2 on UltraFeedback
    "helpful": {"beta_r": 0.5},  # PKU-SafeRLHF, one reward model for each side of it
    "harmless": {"beta_r": 0.01},
    "hinge": {"loss": "hinge"},
}  # fmt: skip
UNEQUAL = 1.5  # warn if one side is this many times as long as the other


@method(
    "genarm",
    paper="GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment",
    year=2024,
    source="arXiv:2410.08193",
    gives=("models", "findings"),
    capabilities=("generate", "train"),
    kinds=("causal",),
    protocol=("prefer",),
    presets=PRESETS,
)
def genarm(
    model: Model,
    preferences: Sequence[Preference],
    *,
    arm: str | None = None,
    alpha: float = 1.0,
    others: Sequence[str] = (),
    other_alphas: Sequence[float] = (),
    normalize: bool = False,
    beta_r: Positive = 0.05,
    gamma: float = 0.0,
    label_smoothing: Smoothing = 0.0,
    loss: Literal["logistic", "hinge"] = "logistic",
    length_normalization: bool = False,
    fit: Fit = Fit(lr=5e-4, epochs=1, rows=32, schedule="cosine", warmup=0.02, weight_decay=0.05, lora=8),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Align a model to preferences without changing its weights: a reward model guides every token it decodes.

    The reward of an answer IS its log-prob under a language model p_arm, which learns from pairs without a reference:

        S(y) = sum_t log p_arm(y_t | x, y<t),      L = -mean log sigmoid(beta_r (S(y_w) - S(y_l)) - gamma)

    S is the SUM over the answer's tokens, its end token included. At decoding

        log pi(v | x, y<t) = log p(v | x, y<t) + sum_i alpha_i log p_arm_i(v | x, y<t) - log Z(x, y<t)

    at the cost of one forward pass of p_arm per token. Normalisation is per token, so this is not the optimum of
    KL-regularised reward maximisation, which accounts for the continuations of a prefix. An untrained copy of the base
    as p_arm sharpens the base to temperature 1/(1 + alpha): that is the control to compare with.

    The result is the guided model: it scores, generates, saves and loads like any other. Its folder holds p_arm (an
    ordinary model, but not one to use alone) in `member-1`, and the location of the base. For transformers
    `infer.guide.GuidedDecoder(base, [(arm, 1.0), ...])` is a logits processor.

    Args:
        model: the causal base model whose answers are guided; left unchanged.
        preferences: pairs of answers; where lengths differ, longer rejected answers are pushed down by length alone.
        arm: folder or hub id of a model that becomes the reward model, of any size (weak-to-strong) but with the base's
            vocabulary; by default a copy of the base.
        alpha: weight of the reward model at decoding, 1 / beta in the paper.
        others: folders of further reward models for guidance, as earlier runs saved them in `model/member-1`.
        other_alphas: their weights; 1 each by default.
        normalize: divide by the sum of weights, the base's 1 included: flatter, not the paper's policy.
        beta_r: scale of the reward in training.
        gamma: target margin.
        label_smoothing: share of pairs assumed to be labelled the wrong way round.
        loss: l(z): logistic, or hinge max(0, 1 - z).
        length_normalization: S is the mean over tokens (in the official code for tests only).
        fit: how to train the reward model.
        hooks: called around every step.

    Returns:
        The guided model; findings: the mean lengths of both sides.

    Raises:
        UserError: an option is out of range; a vocabulary that is not the base's; a completion longer than the context;
            the loss became NaN.
    """
    if other_alphas and len(other_alphas) != len(others):
        raise UserError(f"other_alphas: {len(other_alphas)} weights for {len(others)} other reward models")
    start = load.load(arm, str(model.device)) if arm else model
    other_arms = [load.load(folder, str(model.device)) for folder in others]
    for name, guide in zip([arm or "the reward model", *others], [start, *other_arms], strict=True):
        logit_ensemble.check(model, guide, name)
    alphas = [alpha, *(other_alphas or [1.0] * len(others))]
    if normalize and sum(alphas) <= -1:
        raise UserError(f"weights {alphas} sum to -1 or less: they cannot be normalised")
    items = pairs.groups(start, preferences)

    def reward_loss(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
        return preference.autoregressive_reward(logp[:, 0], logp[:, 1], beta_r, gamma, label_smoothing, loss)

    trained = pairs.train(
        start, items, reward_loss, fit, mean=length_normalization, log=pairs.margins(beta_r),
        hooks=[NoDropout(), *hooks], name="genarm",
    )  # fmt: skip
    guided = logit_ensemble.guided(model, list(zip([trained.model, *other_arms], alphas, strict=True)), normalize)
    chosen, rejected = (sum(len(item[side].completion) for item in items) / len(items) for side in (0, 1))
    return trained.result(
        models={"model": guided},
        findings={"lengths": {"chosen": chosen, "rejected": rejected}},
        warnings=[] if length_normalization else _warnings(chosen, rejected),
    )


def _warnings(chosen: float, rejected: float) -> list[str]:
    """Warn of unequal lengths: a sum over tokens rewards the shorter side for its length alone."""
    if max(chosen, rejected) <= UNEQUAL * min(chosen, rejected):
        return []
    return [
        f"chosen answers have {chosen:.0f} tokens and rejected ones {rejected:.0f}: part of the reward is their length"
    ]
