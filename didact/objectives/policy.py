"""Policy gradients on whole answers: leave-one-out baselines and KL-penalised rewards.

With n answers y_1 .. y_n to a prompt, sampled from the old policy (log-probs `old`), and rewards R:

    r_i = R_i - beta (old_i - ref_i)              the penalty's mean is beta KL(old || ref), SUM over tokens
    A_i = r_i - mean of the others' r             RLOO (Ahmadian et al., 2024): unbiased, no value model
    L   = -mean_i min(w_i A_i, clip(w_i) A_i)     w_i = exp(logp_i - old_i); at w = 1 its gradient is REINFORCE's
"""

from __future__ import annotations

import torch
from torch import Tensor


def penalised(reward: Tensor, old: Tensor, ref: Tensor, beta: float) -> Tensor:
    """Rewards minus each answer's KL penalty; log-probs are SUMS over tokens, in nats."""
    return reward - beta * (old - ref)


def leave_one_out(reward: Tensor) -> Tensor:
    """Advantages: each reward minus the mean of the prompt's other answers, `(B, n) -> (B, n)`, n at least 2."""
    n = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * (n / (n - 1))


def clipped(logp: Tensor, old: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's clipped surrogate loss (Schulman et al., 2017), with one ratio per answer: `(...) -> (...)`."""
    ratio = (logp - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def exponential_weight(advantage: Tensor, beta: float, most: float = 1000.0) -> Tensor:
    """Weight of a sample in reward- and advantage-weighted regression: `min(e^(advantage / beta), most)`.

    Peters & Schaal, 2007; Peng et al., 2019 (arXiv:1910.00177), whose clamp is lower.
    """
    return (advantage / beta).exp().clamp(max=most)
