"""The positive control of icl-vs-gd: linear attention on regressions, where ICL equals a step of gradient descent."""

from __future__ import annotations

import dataclasses

from didact import mechanisms
from didact.claims import lab
from didact.evaluate import equivalence, learners
from didact.evaluate.learners import EvaluationConfig
from didact.evaluate.linear_reader import LinearReader
from didact.evaluate.references import gradient
from didact.evaluate.three_way import Episode, Way
from didact.learn.subset import Tuning
from didact.models import mixers
from didact.types import Fit
from didact.worlds import regression


def arms(seed: int, steps: int, draws: int) -> dict[str, dict[str, float]]:
    """Compare linear attention, trained on regressions of eight targets, with a step of gradient descent."""
    world = regression.Linear(dim=4, rows=8, outputs=8)
    fit = Fit(steps=steps, rows=512, lr=2e-2, schedule="cosine", betas=(0.9, 0.98), clip=1.0, seed=seed)
    result = mechanisms.mesa_gd(world, restarts=2, evaluation=EvaluationConfig(tasks=500), fit=fit)
    eta = gradient.best_eta(world((seed, 0, 5), 2_000))
    reader = LinearReader(learners.of_module(lab.model_of(result, "lsa").module), gradient.gd, scale=8.0)
    config = equivalence.Comparison(
        ways={"descent": Way("all", Tuning(lr=eta))}, rates=(0.5 * eta, eta, 2 * eta), top=3, orders=4, seed=seed
    )
    trained = equivalence.findings(equivalence.compare(reader, _draws(world, seed, draws), config), config)
    way, order = trained["ways"]["descent"], trained["order"]
    built = LinearReader(learners.of_module(mixers.constructed(4, 8, eta=eta, rows=8).float()), gradient.gd, scale=8.0)
    exact = equivalence.findings(equivalence.compare(built, _draws(world, seed, draws), config), config)
    return {
        "attention": {
            "relative": way["cosine"]["relative"]["estimate"], "order": order["icl"]["probability"]["estimate"],
            "same": float(way["verdict"] == "indistinguishable"),
        },
        "descent": {"order": order["descent"]["probability"]["estimate"]},
        "by hand": {"relative": exact["ways"]["descent"]["cosine"]["relative"]["estimate"]},
    }  # fmt: skip


def _draws(world: regression.Linear, seed: int, draws: int) -> list[equivalence.Draw]:
    """Return tasks as draws: eight rows as demonstrations, eight as other demonstrations, eight as queries."""
    tasks = dataclasses.replace(world, rows=3 * world.rows)((seed, 0, 7), draws)
    out = []
    for x, y in zip(tasks["x"], tasks["y"], strict=True):
        rows = [tuple(zip(a, b, strict=True)) for a, b in zip(x.split(world.rows), y.split(world.rows), strict=True)]
        out.append((Episode(rows[0], rows[2]), Episode(rows[1], rows[2])))
    return out
