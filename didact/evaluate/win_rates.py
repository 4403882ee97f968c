"""How often a policy's answer beats the reference's, when both are decoded by the same procedure.

    W^T = E_{y ~ T(policy), z ~ T(reference)} [ 1[r(y) > r(z)] + 1/2 1[r(y) = r(z)] ]

Exact where a policy's answers and their probabilities are all known; from draws the same formula is used with equal
probabilities, as if N answers were drawn from them with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from didact.objectives.rewards import Procedure

Array = Any


def decoded(probability: Array, reward: Array, to: Procedure) -> Array:
    """Probabilities of answers after the procedure, `(n,), (n,) -> (n,)`; ties are broken at random."""
    p, r = np.asarray(probability, float), np.asarray(reward, float)
    _, level = np.unique(r, return_inverse=True)
    mass = np.bincount(level, weights=p)
    upto = np.minimum(np.cumsum(mass), 1.0)
    gained = np.diff(to.cdf(np.concatenate([[0.0], upto])))
    share = np.divide(gained, mass, out=np.zeros_like(mass), where=mass > 0)
    return p * share[level]


def win_rate(
    probability: Array,
    reward: Array,
    ref_probability: Array,
    ref_reward: Array,
    to: Procedure,
    judged: tuple[Array, Array] | None = None,
) -> float:
    """Of a policy over a reference on one prompt, each with its answers' probabilities and rewards.

    Answers are decoded by their rewards; who wins is up to these too, or to what another judge says of both sides.
    """
    mine, theirs = (decoded(p, r, to) for p, r in ((probability, reward), (ref_probability, ref_reward)))
    ours, others = judged or (reward, ref_reward)
    r, z = np.asarray(ours, float)[:, None], np.asarray(others, float)[None, :]
    return float(mine @ ((r > z) + 0.5 * (r == z)) @ theirs)


def from_draws(
    rewards: Sequence[Array],
    ref_rewards: Sequence[Array],
    to: Procedure,
    judged: Sequence[tuple[Array, Array]] | None = None,
) -> list[float]:
    """The same for every prompt from the rewards of draws; take ten times as many as the procedure draws."""
    out = []
    for i, (mine, theirs) in enumerate(zip(rewards, ref_rewards, strict=True)):
        p, q = (np.full(len(x), 1 / len(x)) for x in (mine, theirs))
        out.append(win_rate(p, mine, q, theirs, to, judged[i] if judged else None))
    return out
