"""InfAlign: align a model for the way it will be decoded, by calibrating and transforming the reward (CTRL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from didact.bounds import Count, Positive
from didact.infer import best_of
from didact.infer.generate import Completion, SamplingConfig
from didact.learn import language, pairs, reward_functions
from didact.learn import rounds as round_loop
from didact.learn.fit import Hook, NoDropout
from didact.learn.language import TrainResult
from didact.learn.rounds import Round, RoundData
from didact.models.model import Model
from didact.objectives import policy, rewards
from didact.objectives.rewards import Calibration
from didact.registry import method
from didact.types import Fit, Result, Reward, Text, UserError

PRESETS: dict[str, dict[str, object]] = {
    "calibrated": {"transform": "identity"},  # best for plain sampling
    "raw": {"transform": "identity", "calibration": "none"},  # standard RLHF
    "worst": {"decoding": "won:4"},
    "optimum": {"transform": "fixed-point"},
}
STEER = (0.85, 2.0)  # bounds of beta's change per round towards a target KL, which the KL follows slowly


@method(
    "infalign",
    paper="InfAlign: Inference-aware language model alignment",
    year=2024,
    source="arXiv:2412.19792",
    gives=("models", "predict", "findings"),
    capabilities=("generate", "train"),
    protocol=("win_rate",),
    presets=PRESETS,
)
def infalign(
    model: Model,
    prompts: Sequence[Text],
    *,
    reward: str | Reward = "",
    judge: str | Reward = "",
    decoding: str = "bon:4",
    transform: Literal["exp", "identity", "log", "fixed-point"] = "exp",
    t: float | None = None,
    calibration: Calibration = "prompt",
    k: Count = 100,
    beta: Positive = 0.1,
    kl: Positive | None = None,
    rounds: Count = 20,
    samples: Annotated[int, Ge(2)] = 4,
    ratio_clip: Positive = 0.2,
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=128, temperature=1.0),
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=32, schedule="constant"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Align a model for decoding by best-of-N, or for robustness when the worst of N answers counts.

    Only the reward r of KL-regularised reinforcement learning is replaced. Against k answers of the reference, the
    initial model, to the same prompt:

        C(x, y) = share of them that is worse + 1/2 share that is equal          calibrate
        R = Phi(C),   Phi(u) = sign(t) exp(t u) / max                            transform
        max E_policy[R] - beta KL(policy || reference)                           RLOO, sampled in rounds

    C is in [0, 1] and does not change when a prompt's rewards are stretched or shifted. Phi rewards what decoding
    selects: t > 0 the best answers, t < 0 the absence of bad ones. Win rates decode BOTH models by the procedure; gains
    in best-of-N cost quality in plain sampling, so its win rate is reported too. Compare transforms at equal KL, not at
    equal beta: their scales differ.

    Args:
        model: a causal or seq2seq model; left unchanged, and used as the reference.
        prompts: `text` is a prompt (`--map text=prompt` reads any file with prompts).
        reward: `module:function` with `function(prompts, completions) -> numbers`, or the folder of a
            sequence-classification model; in Python also the function.
        judge: another reward, in the same forms, that only decides who wins in the scoring. Without it `reward`
            decides, which flatters a model trained on it. Decoding always uses `reward`.
        decoding: the procedure used at inference: sample, bon:N (best of N) or won:N (worst of N).
        transform: Phi: `exp`; `identity`, best for sampling; `log`; `fixed-point`, solved for beta and the decoding.
        t: exponent of `exp`; by default 2.5 N for the best and -2.5 N for the worst of N (the paper's 10 for N = 4),
            and 0, the identity, for sampling.
        calibration: against the answers to the same prompt; to all prompts (`global`, not the paper's); or `none`, the
            raw reward, with transform `identity`.
        k: reference answers per prompt; with fewer than 10 N the best answers share one value of C.
        beta: weight of the KL, SUM over an answer's tokens.
        kl: target KL in nats per answer: beta is adjusted from round to round.
        rounds: how often the policy is sampled.
        samples: answers per prompt and round.
        ratio_clip: PPO's clip: how far a round may move an answer's probability, as a share, before its gradient stops.
        sampling: of answers, in training, scoring and `predict`; their log-probs are those at temperature 1.
        fit: how to train one round, which is one epoch over its prompts; `rows` are prompts.
        hooks: called around every step.

    Returns:
        The model; `predict(prompts)` decodes it by the procedure; `findings["rounds"]`: reward, C, KL and beta of each.

    Raises:
        UserError: options that exclude one another; no reward, or one that raises or gives NaN; the loss became NaN.
    """
    procedure = rewards.procedure(decoding)
    if transform == "fixed-point" and (kl is not None or calibration != "prompt"):
        raise UserError("the fixed-point transform is solved for one beta and calibrated rewards: leave kl and "
                        "calibration as they are")  # fmt: skip
    if calibration == "none" and transform != "identity":
        raise UserError(f"transform {transform} is of calibrated rewards: calibration none takes --transform identity "
                        "(--preset raw)")  # fmt: skip
    score = reward_functions.reward_of(reward, "reward")
    texts = [p.text for p in prompts]
    ids = round_loop.sampled_prompts(model, texts, sampling.max_new_tokens)
    exponent = rewards.recommended(procedure) if t is None else t
    optimum = rewards.fixed_point(procedure, beta) if transform == "fixed-point" else None
    state: dict[str, Any] = {"beta": beta, "reference": None}

    def rated(now: Round, name: str, n: int) -> tuple[list[list[Completion]], Any]:
        """Sample answers to all prompts; return them with their rewards, `(prompts, n)`."""
        completions = now.samples(ids, n, sampling, name)
        return completions, now.rewards(texts, completions, score, f"{name}-rewards")

    def collect(now: Round) -> RoundData:
        if now.number == 0 and calibration != "none":
            # Another seed: these samples are not trained on.
            reference_round = dataclasses.replace(now, fit=now.fit.replace(seed=now.fit.seed + 1))
            state["reference"] = rated(reference_round, "reference", k)[1]
        completions, raw = rated(now, "samples", samples)
        c = rewards.calibrated(raw, state["reference"], calibration)
        if optimum is not None:
            phi = np.interp(c, rewards.grid(), optimum)
        else:
            phi = rewards.transform(c, transform, exponent, floor=0.5 / k)
        items = round_loop.answer_groups(ids, completions)
        old = torch.tensor([[c.logp for c in row] for row in completions], dtype=torch.float64)
        log_ratio = old - language.group_logp(model, items)
        advantage = policy.leave_one_out(policy.penalised(torch.tensor(phi), old, old - log_ratio, state["beta"]))
        length = np.mean([len(x.tokens) for row in completions for x in row])
        means = {"reward": raw.mean(), "calibrated": c.mean(), "kl": log_ratio.mean(), "length": length}
        stats = {name: float(value) for name, value in means.items()} | {"beta": state["beta"]}
        if kl is not None and now.number:  # the KL is 0 in round 0
            state["beta"] *= float(np.clip(stats["kl"] / kl, *STEER))
        return RoundData(items, stats, columns={"advantage": advantage.float(), "old": old.float()})

    def train(now: Round, data: RoundData) -> TrainResult:
        advantage = data.columns["advantage"].to(model.device)

        def loss(logp: Tensor, old: Tensor, index: Tensor) -> Tensor:
            return policy.clipped(logp, old, advantage[index].to(logp), ratio_clip).mean(1)

        def log(logp: Tensor, old: Tensor, index: Tensor) -> Mapping[str, Tensor]:
            return {"moved": (logp - old).abs().mean(1)}

        return pairs.train(
            now.model, data.items, loss, now.fit, reference=data.columns["old"], log=log, hooks=[NoDropout(), *hooks],
            loss_name="policy", stream="prompts",
        )  # fmt: skip

    outcome = round_loop.run_rounds(model, rounds, collect, train, fit, name="infalign", hooks=hooks)

    def predict(asked: Sequence[str]) -> list[str]:
        """Decode by the procedure: the best (worst) of N answers by the reward."""
        return [
            p.text for p in best_of.best_of(outcome.model, asked, abs(procedure.n), score, procedure.n < 0, sampling)
        ]

    too_few = calibration != "none" and k < 10 * abs(procedure.n)
    warning = f"k = {k}: take {10 * abs(procedure.n)} reference answers or more, or the best ones cannot be told apart"
    result = outcome.result(predict=predict, warnings=[warning] if too_few else [])
    result.findings["t"] = exponent
    return result
