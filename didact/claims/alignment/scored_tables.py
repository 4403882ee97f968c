"""Tables of a model's answers: in reward augmentation's world all of them can be scored under every goal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from didact.claims import lab
from didact.claims.alignment import reward_augmented_example as example
from didact.models.model import Model
from didact.worlds.scored import PROMPTS

GOALS = range(1, 11)
ASKED = PROMPTS[:2]  # an answer is worth the same under every prompt of this world


def table(model: Model, seed: int, goals: Sequence[int | None] = (None, *GOALS)) -> Tensor:
    """Log-prob of every answer to two prompts under each goal: `(goals, prompts, answers)`."""
    prompts = [example.WORDING.prompt(x, (float(g),)) if g else x for g in goals for x in ASKED]
    logp = lab.logp(model, [(p, a) for p in prompts for a in example.world(seed).answers()])[0]
    return logp.view(len(goals), len(ASKED), -1).double()


def distance(now: Tensor, before: Tensor) -> Tensor:
    """KL by goal and prompt, `(goals, prompts)`; all other texts together count as one outcome."""
    other, other_before = (1 - x.exp().sum(-1).clamp(max=1 - 1e-9) for x in (now, before))
    return (now.exp() * (now - before)).sum(-1) + other * (other / other_before).log()


def measures(now: Tensor, start: Tensor, seed: int) -> dict[str, float]:
    """Measures of the exact mean scores E[r | g], over all answers, under every goal and without one."""
    world = example.world(seed)
    score = torch.tensor([[world.score(x, a) or 0 for a in world.answers()] for x in ASKED])
    mean, mass = ((now.exp() * value).sum(-1).mean(-1) for value in (score, score > 0))
    return {
        "rho": float(stats.spearmanr(GOALS, mean[1:])[0]),
        "range": float(mean[-1] - mean[1]),
        "reward": float(mean[-1]),
        "mass": float(mass[1:].min()),
        "plain_reward": float(mean[0]),
        "plain_mass": float(mass[0]),
        "kl": float(distance(now, start)[1:].mean()),
        "plain_kl": float(distance(now, start)[0].mean()),
    }
