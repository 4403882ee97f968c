"""Arithmetic arms, without a model: the consensus game over many questions at once against a loop over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench import problems
from didact.infer import equilibrium
from didact.infer.equilibrium import Game, Policies

QUESTIONS, CANDIDATES, LOOPED = 10_000, 20, 4


def _start() -> Policies:
    rng = np.random.default_rng(0)
    g = rng.normal(scale=2, size=(QUESTIONS, 2, CANDIDATES))
    return equilibrium.initial(g, rng.normal(scale=2, size=(QUESTIONS, CANDIDATES, 2)))


def consensus_ours(steps: int = 5000) -> dict[str, Any]:
    start, game = _start(), Game(steps=steps)

    def solve() -> list[Any]:
        end = equilibrium.solve(start, game)
        return [end.generator[:LOOPED].tolist(), end.discriminator[:LOOPED].tolist()]

    return problems.measured(solve, QUESTIONS)


def consensus_loop(arrays: bool = False, steps: int = 5000) -> dict[str, Any]:
    """A few questions, one after another, by the paper's formulas: with lists, or with numpy arrays."""
    start, play = _start(), _arrays if arrays else _lists

    def solve() -> list[Any]:
        policies = [play(start.generator[i], start.discriminator[i], steps) for i in range(LOOPED)]
        return [[g for g, _ in policies], [d for _, d in policies]]

    return problems.measured(solve, LOOPED)


def _arrays(g1: Any, d1: Any, steps: int, eta: float = 0.1, lam: float = 0.1) -> Any:
    g, d, sum_d, sum_g = g1, d1, np.zeros_like(g1), np.zeros_like(d1)
    anchor_g, anchor_d = lam * np.log(g1), lam * np.log(d1)
    for t in range(1, steps + 1):
        sum_d += d.T
        sum_g += g.T
        g = np.exp((sum_d / (2 * t) + anchor_g) / (1 / (eta * t) + lam))
        d = np.exp((sum_g / (2 * t) + anchor_d) / (1 / (eta * t) + lam))
        g /= g.sum(1, keepdims=True)
        d /= d.sum(1, keepdims=True)
    return g.tolist(), d.tolist()


def _lists(g1: Any, d1: Any, steps: int, eta: float = 0.1, lam: float = 0.1) -> Any:
    g, d = g1.tolist(), d1.tolist()
    anchor_g, anchor_d = ([[lam * math.log(p) for p in row] for row in x] for x in (g, d))
    sum_d, sum_g = ([[0.0] * len(row) for row in x] for x in (g, d))
    for t in range(1, steps + 1):
        for v in range(2):
            for y in range(len(d)):
                sum_d[v][y] += d[y][v]
                sum_g[y][v] += g[v][y]
        temperature = 1 / (eta * t) + lam
        g = [_softmax(sum_d[v], anchor_g[v], 2 * t, temperature) for v in range(2)]
        d = [_softmax(sum_g[y], anchor_d[y], 2 * t, temperature) for y in range(len(d))]
    return g, d


def _softmax(sums: list[float], anchor: list[float], rounds: float, temperature: float) -> list[float]:
    out = [math.exp((h / rounds + a) / temperature) for h, a in zip(sums, anchor, strict=True)]
    total = sum(out)
    return [p / total for p in out]
