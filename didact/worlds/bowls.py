"""A family of tuning problems: two integer hyperparameters, a score that falls off around an optimum, and a card that
describes roughly where it lies. A model may know the family and the cards beforehand; each task is a new draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 16  # values of a hyperparameter, 0 to 15
TOP = 99  # highest score
CARDS = 8
JITTER = 2  # largest offset of a task's optimum from its card's, per coordinate
WIDE = 0.9  # score lost per squared distance
MIXED = 0.4  # weight of the interaction a * b
NOISE = 2.0


@dataclass(frozen=True)
class Bowl:
    """One task: its card and its optimum."""

    card: int
    optimum: tuple[int, int]

    def value(self, config: dict[str, int]) -> float:
        """The expected score of a configuration, at least 0."""
        a, b = config["a"] - self.optimum[0], config["b"] - self.optimum[1]
        return float(max(0.0, TOP - WIDE * (a * a + b * b + MIXED * a * b)))

    def score(self, config: dict[str, int], rng: np.random.Generator) -> int:
        """A noisy score, 0 to 99."""
        return int(np.clip(round(self.value(config) + rng.normal(0, NOISE)), 0, TOP))


@dataclass(frozen=True)
class Bowls:
    """The family for a seed: the optima of so many cards; with `apart`, each of four cards has its own quarter."""

    seed: int
    cards: int = CARDS
    apart: bool = False

    def centre(self, card: int) -> tuple[int, int]:
        """The optimum of a card."""
        if self.apart:
            quarter = int(np.random.default_rng([self.seed, 41]).permutation(4)[card])
            return SIDE // 4 + quarter % 2 * SIDE // 2, SIDE // 4 + quarter // 2 * SIDE // 2
        a, b = np.random.default_rng([self.seed, 41, card]).integers(JITTER, SIDE - JITTER, 2)
        return int(a), int(b)

    def task(self, rng: np.random.Generator, away: bool = False) -> Bowl:
        """A task near its card's optimum; with `away`, half the grid away from it, where no card points."""
        card = int(rng.integers(self.cards))
        a, b = (int(c + d) for c, d in zip(self.centre(card), rng.integers(-JITTER, JITTER + 1, 2), strict=True))
        if away:
            a, b = (a + SIDE // 2) % SIDE, (b + SIDE // 2) % SIDE
        return Bowl(card, (a, b))

    def configs(self, rng: np.random.Generator, count: int) -> list[dict[str, int]]:
        """Random configurations."""
        return [{"a": int(a), "b": int(b)} for a, b in rng.integers(0, SIDE, (count, 2))]
