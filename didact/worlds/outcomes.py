"""All answers of a tiny world, so that expectations, divergences and win rates are sums and not estimates.

An answer is `length` letters of an alphabet of V. A policy is a table of logits, one row a prefix: `(..., P, V)`
with P = (V^length - 1) / (V - 1) prefixes, the empty one first, then by length and in alphabetical order. From it
follow the log-probs of all n = V^length answers, in alphabetical order.
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
        letters: of the alphabet, V at most 26.
        length: of every answer.
    """

    letters: int = 5
    length: int = 4

    @functools.cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """All of them, as letters' numbers."""
        return list(itertools.product(range(self.letters), repeat=self.length))

    @functools.cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """Every beginning that something follows."""
        return [p for n in range(self.length) for p in itertools.product(range(self.letters), repeat=n)]

    @functools.cached_property
    def paths(self) -> tuple[Tensor, Tensor]:
        """Which prefix each letter of each answer follows, and which letter it is: `(n, length)` twice."""
        number = {p: i for i, p in enumerate(self.prefixes)}
        before = torch.tensor([[number[a[:t]] for t in range(self.length)] for a in self.answers])
        return before, torch.tensor(self.answers)

    def text(self, answer: tuple[int, ...]) -> str:
        """An answer or a prefix as letters."""
        return "".join(chr(97 + letter) for letter in answer)

    def logp(self, logits: Tensor) -> Tensor:
        """Log-probs of all answers, `(..., P, V)` to `(..., n)`."""
        before, letter = self.paths
        return logits.log_softmax(-1)[..., before, letter].sum(-1)

    def source(self, seed: int, spread: float = 1.0) -> Tensor:
        """Logits of a random Markov chain of order one, `(P, V)`: something to learn that is not uniform."""
        rng = np.random.default_rng([seed, 61])
        first, then = rng.normal(0, spread, self.letters), rng.normal(0, spread, (self.letters, self.letters))
        return torch.tensor(np.array([then[p[-1]] if p else first for p in self.prefixes]))

    def reward(self, seed: int) -> Tensor:
        """A bonus for every pair of neighbours and one for the last pair: mean 0, variance 1 over answers, `(n,)`.

        What comes early decides which last pairs can still be reached.
        """
        rng = np.random.default_rng([seed, 62])
        pair, last = rng.normal(size=(2, self.letters, self.letters))
        total = np.array([sum(pair[a, b] for a, b in itertools.pairwise(y)) + 2 * last[y[-2:]] for y in self.answers])
        return torch.tensor((total - total.mean()) / total.std())

    def stretched(self, seed: int, prompts: int) -> Any:
        """A reward for each prompt on a scale of its own, as reward models give them: `(prompts, answers)`."""
        rng = np.random.default_rng([seed, 71])
        plain = np.stack([self.reward(100 * seed + x).numpy() for x in range(prompts)])
        stretch, shift = np.exp(rng.normal(0, 1, prompts)), rng.normal(0, 3, prompts)
        return stretch[:, None] * plain**3 + shift[:, None]

    def drawn(self, logp: Tensor, n: int, seed: int) -> Any:
        """Numbers of `n` answers, from log-probs `(answers,)`."""
        p = logp.double().exp().numpy()
        return np.random.default_rng([seed, 64]).choice(len(p), size=n, p=p / p.sum())

    def preferences(
        self, prompt: str, logp: Tensor, reward: Tensor, n: int, seed: int, sure: float = 2.0, right: float = 1.0
    ) -> list[Preference]:
        """At most `n` pairs of different answers drawn from log-probs; the better is labelled so with probability
        `sigmoid(sure (r - r'))`, and a share `right` of the labels is kept."""
        draw = np.random.default_rng([seed, 63])
        two = self.drawn(logp, 2 * n, seed + 1).reshape(-1, 2)
        two = two[two[:, 0] != two[:, 1]]
        gap = (reward[two[:, 0]] - reward[two[:, 1]]).numpy()
        first = draw.random(len(two)) < 1 / (1 + np.exp(-sure * gap))
        first ^= draw.random(len(two)) >= right
        texts = [self.text(answer) for answer in self.answers]
        ordered = (pair if better else pair[::-1] for pair, better in zip(two, first, strict=True))
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
        policy: log-probs `(..., n)` at a strength; the KL must grow with it.
        ref_logp: `(..., n)`.
        target: nats.
        top: the strongest; what it gives is taken where the target is out of its reach.
    """
    low, high = 0.0, top
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(kl(policy(middle), ref_logp).mean()) < target else (low, middle)
    return high, policy(high)
