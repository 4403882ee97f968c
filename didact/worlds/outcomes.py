"""A world so small that its answers can be enumerated: expectations, divergences and win rates are exact sums.

An answer is `length` letters of an alphabet of V. A policy is a table of logits, one row per prefix: `(..., P, V)`
with P = (V^length - 1) / (V - 1) prefixes, the empty one first, then by length and in alphabetical order. It determines
the log-probs of all n = V^length answers, in alphabetical order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact.types import Preference


@dataclass(frozen=True)
class Outcomes:
    """The world.

    Args:
        letters: size V of the alphabet, at most 26.
        length: of every answer.
    """

    letters: int = 5
    length: int = 4

    @functools.cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """All answers, as letter indices."""
        return list(itertools.product(range(self.letters), repeat=self.length))

    @functools.cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """All proper prefixes of answers."""
        return [p for n in range(self.length) for p in itertools.product(range(self.letters), repeat=n)]

    @functools.cached_property
    def paths(self) -> tuple[Tensor, Tensor]:
        """For each letter of each answer, the index of its prefix and of the letter: `(n, length)` twice."""
        index = {p: i for i, p in enumerate(self.prefixes)}
        prefix = torch.tensor([[index[a[:t]] for t in range(self.length)] for a in self.answers])
        return prefix, torch.tensor(self.answers)

    def text(self, answer: tuple[int, ...]) -> str:
        """An answer or a prefix as letters."""
        return "".join(chr(97 + letter) for letter in answer)

    def logp(self, logits: Tensor) -> Tensor:
        """Log-probs of all answers, `(..., P, V)` to `(..., n)`."""
        prefix, letter = self.paths
        return logits.log_softmax(-1)[..., prefix, letter].sum(-1)

    def source(self, seed: int, spread: float = 1.0) -> Tensor:
        """Logits of a random first-order Markov chain, `(P, V)`: a non-uniform distribution to learn."""
        rng = np.random.default_rng([seed, 61])
        start, moves = rng.normal(0, spread, self.letters), rng.normal(0, spread, (self.letters, self.letters))
        return torch.tensor(np.array([moves[p[-1]] if p else start for p in self.prefixes]))

    def reward(self, seed: int) -> Tensor:
        """A bonus for every bigram and another for the last one, with mean 0 and variance 1 over answers: `(n,)`.

        Early letters constrain which last bigrams remain reachable.
        """
        rng = np.random.default_rng([seed, 62])
        bonus, last = rng.normal(size=(2, self.letters, self.letters))
        totals = np.array([sum(bonus[a, b] for a, b in itertools.pairwise(y)) + 2 * last[y[-2:]] for y in self.answers])
        return torch.tensor((totals - totals.mean()) / totals.std())

    def stretched(self, seed: int, prompts: int) -> Any:
        """A reward per prompt with its own scale and shift, as with reward models: `(prompts, answers)`."""
        rng = np.random.default_rng([seed, 71])
        rewards = np.stack([self.reward(100 * seed + x).numpy() for x in range(prompts)])
        scale, shift = np.exp(rng.normal(0, 1, prompts)), rng.normal(0, 3, prompts)
        return scale[:, None] * rewards**3 + shift[:, None]

    def drawn(self, logp: Tensor, n: int, seed: int) -> Any:
        """Sample indices of `n` answers, given log-probs `(answers,)`."""
        p = logp.double().exp().numpy()
        return np.random.default_rng([seed, 64]).choice(len(p), size=n, p=p / p.sum())

    def preferences(
        self, prompt: str, logp: Tensor, reward: Tensor, n: int, seed: int, sure: float = 2.0, right: float = 1.0
    ) -> list[Preference]:
        """At most `n` pairs of different answers sampled from log-probs; the first is labelled better with probability
        `sigmoid(sure (r - r'))`, and a share `1 - right` of the labels is flipped."""
        draw = np.random.default_rng([seed, 63])
        pairs = self.drawn(logp, 2 * n, seed + 1).reshape(-1, 2)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        gap = (reward[pairs[:, 0]] - reward[pairs[:, 1]]).numpy()
        first_wins = draw.random(len(pairs)) < 1 / (1 + np.exp(-sure * gap))
        first_wins ^= draw.random(len(pairs)) >= right
        texts = [self.text(answer) for answer in self.answers]
        ordered = (pair if wins else pair[::-1] for pair, wins in zip(pairs, first_wins, strict=True))
        return [Preference(prompt=prompt, chosen=texts[a], rejected=texts[b]) for a, b in ordered]


def kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KL(policy || reference) in nats: `(..., n), (..., n) -> (...)`."""
    return (logp.exp() * (logp - ref_logp)).sum(-1)


def tilted(ref_logp: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The policy that maximises `E[reward] - beta KL`: `ref exp(reward / beta)`, log-probs `(..., n)`."""
    return (ref_logp + reward / beta).log_softmax(-1)


def matched(
    policy: Callable[[float], Tensor], ref_logp: Tensor, target: float, top: float = 64.0
) -> tuple[float, Tensor]:
    """The strength in [0, top] at which the mean KL to the reference is `target`, by bisection, and its log-probs.

    Args:
        policy: function from a strength to log-probs `(..., n)`; the KL must grow with the strength.
        ref_logp: `(..., n)`.
        target: KL in nats.
        top: largest strength, returned if the target is out of reach.
    """
    low, high = 0.0, top
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(kl(policy(middle), ref_logp).mean()) < target else (low, middle)
    return high, policy(high)
