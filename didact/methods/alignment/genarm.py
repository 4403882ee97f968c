"""GenARM: a reward model that is itself a language model, and guides a frozen one token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from didact.data import encode
from didact.data.streams import ExampleGroup, MicroBatch
from didact.infer import guide
from didact.infer.generate import SamplingConfig
from didact.learn import language, rounds
from didact.learn.fit import Hook, Term
from didact.models import load
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
UNEQUAL = 1.5  # a side this many times as long as the other is told


@method(
    "genarm",
    paper="GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment",
    year=2024,
    source="arXiv:2410.08193",
    gives=("models", "predict", "findings"),
    capabilities=("generate", "train"),
    protocol="prefer",
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
    beta_r: float = 0.05,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
    loss: Literal["logistic", "hinge"] = "logistic",
    length_normalization: bool = False,
    max_new_tokens: int = 128,
    fit: Fit = Fit(lr=5e-4, epochs=1, rows=32, schedule="cosine", warmup=0.02, weight_decay=0.05, lora=8),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make a model answer as people prefer while its weights stay untouched: a reward model guides every token.

    The reward of an answer IS its log-prob under a language model p_arm, which learns from pairs without a reference:

        S(y) = sum_t log p_arm(y_t | x, y<t),      L = -mean log sigmoid(beta_r (S(y_w) - S(y_l)) - gamma)

    S is the SUM over the answer's tokens, its end token included. At decoding

        log pi(v | x, y<t) = log p(v | x, y<t) + sum_i alpha_i log p_arm_i(v | x, y<t) - log Z(x, y<t)

    with one more pass of the small model a token. It is normalised token by token, so it is not the optimum of
    KL-regularised reward maximisation, which knows what a prefix may still become. An untrained copy of the base as
    p_arm sharpens the base to temperature 1/(1 + alpha): what guidance gains is to be seen against that.

    What is saved is p_arm: an ordinary model, not one to be asked by itself. `didact try DIR` decodes with the base
    and it; in Python `infer.guide.GuidedDecoder(base, [(arm, 1.0), ...])` is a transformers logits processor.

    Args:
        model: the base, causal, whose answers are guided; it stays as it was.
        preferences: pairs of answers; of unequal lengths the longer rejected ones are cheaply pushed down.
        arm: folder or hub id of a model that becomes the reward model, of any size (weak-to-strong) but with the base's
            vocabulary; a copy of the base where none is given.
        alpha: weight of the reward model at decoding, 1 / beta of the paper.
        others: folders of further reward models that guide too, as earlier runs left them in `model/`.
        other_alphas: their weights; 1 each where none are given.
        normalize: divide by the sum of weights, the base's 1 included: flatter, not the paper's policy.
        beta_r: scale of the reward in training.
        gamma: margin that z must exceed.
        label_smoothing: share of pairs assumed to be labelled the wrong way round.
        loss: l(z): logistic, or hinge max(0, 1 - z).
        length_normalization: S is the mean over tokens (in the official code for tests only).
        max_new_tokens: of the answers shown.
        fit: how to train the reward model.
        hooks: called around every step.

    Returns:
        The reward model; `predict(prompts)` gives guided answers; `findings["guided"]` how they were made, and the
        mean lengths of both sides.

    Raises:
        UserError: an option is out of range; a vocabulary that is not the base's; a completion longer than the
            context; the loss became NaN.
    """
    if beta_r <= 0 or not 0 <= label_smoothing < 0.5 or max_new_tokens < 1:
        raise UserError("genarm needs beta_r above 0, label_smoothing in [0, 0.5) and max_new_tokens of 1 or more")
    if other_alphas and len(other_alphas) != len(others):
        raise UserError(f"other_alphas: {len(other_alphas)} weights for {len(others)} other reward models")
    start = load.load(arm, str(model.device)) if arm else model
    further = [load.load(folder, str(model.device)) for folder in others]
    for name, guiding in zip([arm or "the reward model", *others], [start, *further], strict=True):
        guide.check(model, guiding, name)
    weights = [alpha, *(other_alphas or [1.0] * len(others))]
    if normalize and sum(weights) <= -1:
        raise UserError(f"weights {weights} sum to -1 or less: they cannot be normalised")
    sides = [
        encode.rows(start.tokenizer, pairs, start.kind, start.context, "preferences")
        for pairs in ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    ]
    items: list[ExampleGroup] = list(zip(*sides, strict=True))

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        logp, count = language.sequence_logp(student, micro)
        score = logp / count if length_normalization else logp
        losses = preference.autoregressive_reward(score[:, 0], score[:, 1], beta_r, gamma, label_smoothing, loss)
        margin = beta_r * (score[:, 0] - score[:, 1]).detach()
        return {
            "genarm": Term(losses.sum(), "pairs.rows"),
            "margin": Term(margin.sum(), "pairs.rows", 0.0),
            "accuracy": Term((margin > 0).to(margin).sum(), "pairs.rows", 0.0),
        }

    options = {"beta_r": beta_r, "gamma": gamma, "label_smoothing": label_smoothing, "loss": loss,
               "length_normalization": length_normalization}  # fmt: skip
    taught = language.train(
        start, {"pairs": items}, terms, fit, hooks=[rounds.NoDropout(), *hooks], name="genarm", identity=options
    )
    guides = list(zip([taught.model, *further], weights, strict=True))

    def predict(prompts: Sequence[str], how: SamplingConfig | None = None) -> list[str]:
        """Guided answers; greedy by default."""
        chosen = how or SamplingConfig(max_new_tokens=max_new_tokens)
        return [row[0].text for row in guide.completions(model, guides, prompts, 1, chosen, normalize)]

    lengths = [sum(len(r.completion) for r in side) / len(side) for side in sides]
    return Result(
        models={"model": taught.model},
        policy=guide.policy(model, guides, normalize),
        predict=predict,
        findings={
            "guided": {"alphas": weights, "others": list(others), "normalize": normalize},
            "lengths": {"chosen": lengths[0], "rejected": lengths[1]},
        },
        history=taught.history,
        cost=taught.cost,
        warnings=_warnings(*lengths) if not length_normalization else [],
    )


def _warnings(chosen: float, rejected: float) -> list[str]:
    """A sum over tokens rewards the shorter side for its length alone."""
    if max(chosen, rejected) <= UNEQUAL * min(chosen, rejected):
        return []
    return [
        f"chosen answers have {chosen:.0f} tokens and rejected ones {rejected:.0f}: part of the reward is their length"
    ]
