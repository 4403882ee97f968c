"""Batches of bandits, and the standard algorithms that play them.

Every reward that an arm could pay at a step is drawn beforehand: all players of an instance get the same rewards
(common random numbers), which allows paired comparisons. Algorithms read only a `History`: any player's states can be
labelled with the action that an algorithm would have taken there.

Source of the settings: Nie et al. 2025, arXiv:2410.06238.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from didact.bounds import Count, NonNegative, Positive, PositiveShare
from didact.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]
Algorithm = Literal["ucb", "linucb", "thompson", "greedy", "random"]


@dataclass(frozen=True, kw_only=True)
class BanditConfig:
    """The kind of bandits.

    Args:
        law: bernoulli (the best arm pays 1 with probability .5 + gap/2, the others with .5 - gap/2); gaussian (means
            and rewards of sd `spread`); linear (contextual: the mean reward is a hidden vector of the arm times the
            context); ratings (contextual: the ratings that users of a file gave to its most rated items).
        arms: number of arms; for ratings, of the most rated items.
        gap: difference of the success probabilities of bernoulli.
        spread: sd of gaussian means and rewards, and of linear rewards.
        horizon: pulls of an instance.
        features: length of the context vector; for ratings, the rank of the matrix completion.
        ratings: a CSV file of user,item,rating lines.
    """

    law: Literal["bernoulli", "gaussian", "linear", "ratings"] = "bernoulli"
    arms: Annotated[int, Interval(ge=2, le=20)] = 5
    gap: PositiveShare = 0.5
    spread: Positive = 1.0
    horizon: Count = 300
    features: Count = 5
    ratings: str | None = None

    @property
    def contextual(self) -> bool:
        """Whether a context is shown before every pull."""
        return self.law in ("linear", "ratings")


@dataclass(frozen=True)
class Bandits:
    """N instances of T pulls: expected and drawn rewards of every arm `(N, T, K)`, and contexts `(N, T, d)`."""

    expected: Array
    rewards: Array
    contexts: Array | None = None
    names: tuple[str, ...] = ()  # of the arms, where they have names

    def __len__(self) -> int:
        return len(self.expected)

    @property
    def best(self) -> Array:
        """Expected reward of the best arm, `(N, T)`."""
        return np.asarray(self.expected.max(-1))

    def paid(self, step: int, actions: Array) -> Array:
        """The rewards of these arms at a step, `(N,)`."""
        return np.asarray(self.rewards[np.arange(len(self)), step, actions])

    def context(self, step: int) -> Array | None:
        """The contexts shown before a step, `(N, d)`."""
        return None if self.contexts is None else np.asarray(self.contexts[:, step])


def drawn(config: BanditConfig, count: int, seed: int, part: int = 0) -> Bandits:
    """Draw `count` instances; the i-th depends only on seed, part and i. For ratings, parts have no user in common.

    Raises:
        UserError: the ratings cannot be read, or have too few items or users.
    """
    if config.law == "ratings":
        return _draw_ratings(config, count, seed, part)
    k, t = config.arms, config.horizon
    expected, rewards = np.empty((count, t, k)), np.empty((count, t, k))
    contexts = np.empty((count, t, config.features)) if config.law == "linear" else None
    for i in range(count):
        rng = np.random.default_rng([seed, part, i])
        if contexts is not None:
            hidden = rng.normal(size=(k, config.features)) / np.sqrt(config.features)
            contexts[i] = rng.normal(size=(t, config.features)).round(2)
            expected[i] = contexts[i] @ hidden.T
            rewards[i] = rng.normal(expected[i], config.spread)
        elif config.law == "gaussian":
            expected[i] = rng.normal(0, config.spread, k)
            rewards[i] = rng.normal(expected[i], config.spread)
        else:
            expected[i] = np.where(np.arange(k) == rng.integers(k), 0.5 + config.gap / 2, 0.5 - config.gap / 2)
            rewards[i] = rng.random((t, k)) < expected[i]
    return Bandits(expected, rewards, contexts)


def _draw_ratings(config: BanditConfig, count: int, seed: int, part: int) -> Bandits:
    """Draw a user of this part (0 or 1) at every step; the reward is the completed rating, the context the user's row
    of the low-rank factor."""
    users, matrix, names = _rating_matrix(config)
    u, s, vt = np.linalg.svd(np.where(np.isnan(matrix), np.nanmean(matrix, 0), matrix), full_matrices=False)
    rank = min(config.features, len(s))
    completed, vectors = (u[:, :rank] * s[:rank]) @ vt[:rank], u[:, :rank] * np.sqrt(len(u))
    members = np.flatnonzero(np.random.default_rng([seed, 71]).permutation(users) % 2 == part % 2)
    visitors = np.stack([np.random.default_rng([seed, part, i]).choice(members, config.horizon) for i in range(count)])
    return Bandits(completed[visitors], completed[visitors], vectors[visitors].round(2), names)


def _rating_matrix(config: BanditConfig) -> tuple[int, Array, tuple[str, ...]]:
    """The number of users, the ratings of the most rated items `(users, K)` (NaN: missing), and the items' names."""
    if config.ratings is None:
        raise UserError("law = ratings needs a file of user,item,rating lines: --bandit.ratings FILE")
    ratings: dict[tuple[str, str], float] = {}
    try:
        with open(Path(config.ratings), encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                try:
                    user, item, rating = (cell.strip() for cell in row[:3])
                    ratings[user, item] = float(rating)
                except ValueError:
                    if number > 1:  # the first line may be a header
                        raise UserError(f"{config.ratings}:{number}: not user,item,rating with a number") from None
    except OSError as error:
        raise UserError(f"{config.ratings}: {error.strerror}") from None
    counts: dict[str, int] = {}
    for _, item in ratings:
        counts[item] = counts.get(item, 0) + 1
    items = sorted(counts, key=lambda item: (-counts[item], item))[: config.arms]
    users = sorted({user for user, item in ratings if item in items})
    if len(items) < config.arms or len(users) < 2:
        raise UserError(
            f"{config.ratings}: {len(items)} items and {len(users)} users are too few for {config.arms} arms"
        )
    matrix = np.array([[ratings.get((user, item), np.nan) for item in items] for user in users])
    return len(users), matrix, tuple(items)


# --- histories, and the algorithms that act on them ----------------------------------------------


@dataclass
class History:
    """The pulls and rewards of N instances so far, and their sufficient statistics. Changed only by `add`."""

    count: int
    arms: int
    features: int = 0
    step: int = 0
    actions: list[Array] = field(default_factory=list)  # (N,) a step
    rewards: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pulls, self.sums = np.zeros((2, self.count, self.arms))
        self.gram = np.tile(np.eye(self.features), (self.count, self.arms, 1, 1))
        self.moment = np.zeros((self.count, self.arms, self.features))

    def add(self, actions: Array, rewards: Array, context: Array | None = None) -> None:
        """Add one pull of every instance."""
        rows = np.arange(self.count)
        self.pulls[rows, actions] += 1
        self.sums[rows, actions] += rewards
        if context is not None:
            self.gram[rows, actions] += context[:, :, None] * context[:, None, :]
            self.moment[rows, actions] += rewards[:, None] * context
        self.actions.append(np.asarray(actions))
        self.rewards.append(np.asarray(rewards, dtype=float))
        self.step += 1

    @property
    def means(self) -> Array:
        """Average reward of every arm, 0 for one never pulled, `(N, K)`."""
        return np.asarray(self.sums / np.maximum(self.pulls, 1))


def terms(history: History, algorithm: Algorithm, alpha: NonNegative = 0.5, context: Array | None = None) -> Any:
    """Exploration bonus and exploitation value of every arm, each `(N, K)`; the algorithm takes the largest sum.

        ucb     sqrt(alpha log t / n) + r / n,  t pulls in all;  linucb  alpha sqrt(x' A^-1 x) + x' A^-1 b
        greedy  r / n

    with A = I + sum x x' and b = sum r x of the arm. An arm never pulled has an infinite bonus, so that each is pulled
    once, in order. Thompson and random have no such terms: see `choose`.
    """
    if algorithm == "linucb":
        assert context is not None
        inverse = np.linalg.inv(history.gram)
        theta = np.einsum("nkde,nke->nkd", inverse, history.moment)
        width = np.einsum("nd,nkde,ne->nk", context, inverse, context)
        return alpha * np.sqrt(width), np.einsum("nkd,nd->nk", theta, context)
    unseen = history.pulls == 0
    if algorithm == "greedy":
        return np.where(unseen, np.inf, 0.0), history.means
    bonus = np.sqrt(alpha * np.log(max(history.step, 1)) / np.maximum(history.pulls, 1))
    return np.where(unseen, np.inf, bonus), history.means


def choose(
    history: History,
    algorithm: Algorithm,
    rng: np.random.Generator,
    alpha: NonNegative = 0.5,
    context: Array | None = None,
) -> Array:
    """The arm an algorithm pulls next in every instance, `(N,)`; ties go to the first, for linucb to a random one.

    Thompson draws from Beta(1 + r, 1 + n - r), counting rewards in [0, 1] as fractional successes; if any reward was
    outside, from a normal of mean r / (n + 1) and variance 1 / (n + 1).
    """
    shape = (history.count, history.arms)
    if algorithm == "random":
        return rng.integers(history.arms, size=history.count)
    if algorithm == "thompson":
        n, r = history.pulls, history.sums
        if all(((reward >= 0) & (reward <= 1)).all() for reward in history.rewards):
            return np.asarray(rng.beta(1 + r, 1 + np.maximum(n - r, 0)).argmax(-1))
        return np.asarray(rng.normal(r / (n + 1), 1 / np.sqrt(n + 1)).argmax(-1))
    bonus, value = terms(history, algorithm, alpha, context)
    total = bonus + value
    if algorithm == "linucb":
        return np.asarray(np.where(total >= total.max(-1, keepdims=True), rng.random(shape), -1).argmax(-1))
    return np.asarray(total.argmax(-1))
