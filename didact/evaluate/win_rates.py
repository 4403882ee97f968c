"""How often a policy's answer beats the reference's, when both are decoded by the same procedure.

    W^T = E_{y ~ T(policy), z ~ T(reference)} [ 1[r(y) > r(z)] + 1/2 1[r(y) = r(z)] ]

Exact if a policy's answers and their probabilities are all known; for samples the same formula is used with equal
probabilities, as if N answers were drawn from them with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from didact.objectives.rewards import Procedure

Array = Any


def decoded(probability: Array, reward: Array, procedure: Procedure) -> Array:
    """Probabilities of answers after the procedure, `(n,), (n,) -> (n,)`; ties are broken at random."""
    p, r = np.asarray(probability, float), np.asarray(reward, float)
    _, level = np.unique(r, return_inverse=True)
    mass = np.bincount(level, weights=p)
    cumulative = np.minimum(np.cumsum(mass), 1.0)
    gained = np.diff(procedure.cdf(np.concatenate([[0.0], cumulative])))
    share = np.divide(gained, mass, out=np.zeros_like(mass), where=mass > 0)
    return p * share[level]


def win_rate(
    probability: Array,
    reward: Array,
    ref_probability: Array,
    ref_reward: Array,
    procedure: Procedure,
    judged: tuple[Array, Array] | None = None,
) -> float:
    """Win rate of a policy over a reference on one prompt, from the probabilities and rewards of their answers.

    Answers are decoded by their rewards; these also decide who wins, or else the scores of another judge (`judged`).
    """
    policy, reference = (decoded(p, r, procedure) for p, r in ((probability, reward), (ref_probability, ref_reward)))
    scores, ref_scores = judged or (reward, ref_reward)
    r, z = np.asarray(scores, float)[:, None], np.asarray(ref_scores, float)[None, :]
    return float(policy @ ((r > z) + 0.5 * (r == z)) @ reference)


def from_draws(
    rewards: Sequence[Array],
    ref_rewards: Sequence[Array],
    procedure: Procedure,
    judged: Sequence[tuple[Array, Array]] | None = None,
) -> list[float]:
    """Win rate on every prompt from the rewards of samples; take ten times as many as the procedure draws."""
    out = []
    for i, (reward, ref_reward) in enumerate(zip(rewards, ref_rewards, strict=True)):
        p, q = (np.full(len(x), 1 / len(x)) for x in (reward, ref_reward))
        out.append(win_rate(p, reward, q, ref_reward, procedure, judged[i] if judged else None))
    return out
