"""Measures of bandit play: regret and its growth, exploration, and whether the best arm is given up.

Source: Nie et al. 2025, arXiv:2410.06238; suffix failures: Krishnamurthy et al. 2024, arXiv:2403.15371.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from didact.evaluate import statistics
from didact.evaluate.measures import Measure, mean_measure
from didact.infer import acting
from didact.infer.acting import Oracle, Played
from didact.tools import bandits
from didact.tools.bandits import Algorithm, Array, BanditConfig, Bandits

LEVEL = 0.05
PART = 1  # the part of the instances used for scoring; training uses part 0
RIVALS: tuple[Algorithm, ...] = ("thompson", "greedy", "random")


def world_of(config: BanditConfig, trials: int, seed: int) -> Bandits:
    """The instances that are scored on: the same for every model and algorithm."""
    return bandits.drawn(config, trials, seed, PART)


def rivals(world: Bandits, oracle: Oracle, seed: int) -> dict[str, Played]:
    """Games of the oracle and of algorithms to compare with; with contexts only of `random`."""
    names = RIVALS if world.contexts is None else ("random",)
    games = {name: acting.play_algorithm(world, Oracle(name), seed) for name in names}
    return {"oracle": acting.play_algorithm(world, oracle, seed)} | games


def losses(world: Bandits, game: Played) -> Array:
    """Expected loss of every pull, `mu* - mu_a`, `(N, t)`."""
    t = game.actions.shape[1]
    pulled = np.take_along_axis(world.expected[:, :t], game.actions[:, :, None], 2)[:, :, 0]
    return np.asarray(world.best[:, :t] - pulled)


def curve(world: Bandits, game: Played) -> Array:
    """Cumulative expected regret, `(N, t)`."""
    return np.asarray(losses(world, game).cumsum(1))


def optimal(world: Bandits, game: Played) -> Array:
    """Share of pulls of a best arm, `(N,)`."""
    return np.asarray((losses(world, game) <= 1e-12).mean(1))


def min_fraction(world: Bandits, game: Played) -> Array:
    """MinFrac: K times the smallest share of pulls of any arm, `(N,)`; 1 for round-robin."""
    arms = world.expected.shape[-1]
    shares = np.stack([(game.actions == k).mean(1) for k in range(arms)], 1)
    return np.asarray(arms * shares.min(1))


def suffix_failures(world: Bandits, game: Played) -> Array:
    """Whether no best arm was pulled in the second half, `(N,)`."""
    t = game.actions.shape[1]
    return np.asarray((losses(world, game)[:, t // 2 :] > 1e-12).all(1))


def measures(world: Bandits, game: Played, against: Mapping[str, Played], gap: float = 1.0) -> dict[str, Measure]:
    """All of the above as means over instances, with the paired excess over the oracle's regret, the share of rivals
    that are beaten (see `win_rates`), and the linear part of the regret's growth."""
    t = game.actions.shape[1]
    if not t:
        return {}
    curves = {name: curve(world, other)[:, :t] for name, other in against.items()} | {"player": curve(world, game)}
    final = {name: c[:, -1] for name, c in curves.items()}
    win_rate = win_rates({name: [c] for name, c in final.items()})["player"]
    failed, valid = suffix_failures(world, game), game.own.mean(1)
    linear = growth(curves["player"].mean(0), gap).linear
    return {
        "regret": mean_measure(final["player"], "lower", "cumulative expected regret", "reward"),
        "regret_beyond_oracle": mean_measure(
            final["player"] - final["oracle"], "lower", "regret less the oracle's on the same instances", "reward"
        ),
        "best_arm": mean_measure(optimal(world, game), "higher", "share of pulls of the best arm"),
        "suffix_failures": mean_measure(failed, "lower", "no best arm pulled in the second half"),
        "least_pulled": mean_measure(
            np.minimum(min_fraction(world, game), 1), "", "K times the rarest arm's share of pulls"
        ),
        "invalid": mean_measure(1 - valid, "lower", "answers that name no arm, replaced by a random one"),
        "win_rate": Measure(win_rate, len(against), "higher", help=f"of {', '.join(against)}: beaten with p < {LEVEL}"),
        "linear_growth": Measure(
            linear, len(world), "lower", "reward", help="regret per pull that learning does not remove"
        ),
    }


class Growth(NamedTuple):
    """`f(T) = scale log(T)^power / gap + linear T + offset`, least squares; `linear` is regret without learning."""

    scale: float
    power: float
    linear: float
    offset: float
    error: float


def growth(regret: Any, gap: float = 1.0) -> Growth:
    """Fit a mean regret curve, all parameters but the offset at least 0; `error` is the root mean square residual."""
    y = np.asarray(regret, dtype=float)
    t = np.arange(1, len(y) + 1)

    def form(x: Any) -> Array:
        return np.asarray(x[0] * np.log(t) ** x[1] / gap + x[2] * t + x[3])

    slope = float(y[-1] / len(y))
    starts = [(0.1, 1.0, slope, 0.0), (gap * slope * len(y) / max(np.log(len(y)), 1e-9), 1.0, 1e-6, 0.0)]
    fits = [
        optimize.least_squares(lambda x: form(x) - y, start, bounds=([0, 0, 0, -np.inf], [np.inf, 4, np.inf, np.inf]))
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost)
    scale, power, linear, offset = map(float, best.x)
    return Growth(scale, power, linear, offset, float(np.sqrt(np.mean(best.fun**2))))


def win_rates(final: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Share of comparisons, over all rivals and configurations, that a player wins: lower final regret, p < .05.

    Args:
        final: by player, one array of final regrets for each configuration; the same instances for all players.
    """
    players = list(final)
    wins: dict[str, list[bool]] = {name: [] for name in players}
    for name in players:
        for rival in (other for other in players if other != name):
            for a, b in zip(final[name], final[rival], strict=True):
                p = statistics.paired_p(a, b)
                wins[name].append(bool(np.mean(a) < np.mean(b) and (p < LEVEL)))
    return {name: float(np.mean(outcomes)) if outcomes else float("nan") for name, outcomes in wins.items()}


def standings(world: Bandits, games: Mapping[str, Played], gap: float) -> dict[str, Any]:
    """Compare players, as a finding: final regret with its interval, failures, growth and win rate."""
    curves = {name: curve(world, game) for name, game in games.items()}
    shortest = min(c.shape[1] for c in curves.values())
    if not shortest:
        return {}
    final = {name: [c[:, shortest - 1]] for name, c in curves.items()}
    wins = win_rates(final)
    out: dict[str, Any] = {}
    for name, game in games.items():
        interval = statistics.mean_interval(final[name][0])
        pulls = np.unique(np.linspace(0, shortest - 1, 20).astype(int))
        out[name] = {
            "regret": interval.estimate, "interval": [interval.low, interval.high], "win_rate": wins[name],
            "suffix_failures": float(suffix_failures(world, game).mean()),
            "best_arm": float(optimal(world, game).mean()), "least_pulled": float(min_fraction(world, game).mean()),
            "invalid": float(1 - game.own.mean()),
            "growth": growth(curves[name].mean(0), gap)._asdict(),
            "curve": {int(t + 1): float(curves[name][:, t].mean()) for t in pulls},
        }  # fmt: skip
    return out
