"""NPO's claim on the paper's synthetic world and on invented authors: it forgets as ascent does, and does not collapse.

A (paper, section 4): seven ways to unlearn one cloud, each at the paper's learning rate, measured as KL distances to
the model that never saw it. B (theorem 2): gradient ascent diverges linearly in t, NPO in log t. C: the method itself,
`didact.unlearning.npo`, on a Llama that knows invented authors; utility is measured on authors outside unlearning, at
the end and (reported) when the answers were first forgotten. Of learning rates 1e-4, 3e-4 and 1e-3 and beta .3 and 1,
each arm has the best at the end on seed 1000. A first draft of C measured token accuracy instead of an answer's
probability, but every model predicts the end token. Sequences are one token long in A and B, so the sabotage 'mean per
token' does not exist there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from didact import unlearning
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, exact, gate, ratio
from didact.claims.unlearning import clouds, npo_example
from didact.claims.unlearning.clouds import Arm, dpo, ga, idk, kl, npo, rt
from didact.evaluate import forgetting
from didact.learn.fit import every
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit
from didact.worlds import authors, logistic

# Forgotten means: a tenth of the start model's forget distance. The 0.05 nats of the paper's one instance are out of
# reach of every arm on half of the tuning seeds (1000-1005).
FORGOTTEN = 0.1
# Steps to train the start and gold models, to unlearn (A), to diverge (B).
LENGTH = {"smoke": (500, 100, 500), "quick": (20_000, 2_000, 3_000), "full": (20_000, 2_000, 10_000)}
ARMS = {  # learning rates and betas of every arm are the paper's for alpha = 1
    "GA": Arm(5e-4, ga),
    "GA+RT": Arm(5e-4, ga, rt),
    "GA+KL": Arm(5e-4, ga, kl),
    "IDK+RT": Arm(5e-4, idk, rt),
    "DPO+RT": Arm(5e-3, dpo(0.1), rt),
    "NPO": Arm(5e-3, npo(1.0)),
    "NPO+RT": Arm(5e-3, npo(1.0), rt),
    "NPO(beta=0.01)": Arm(5e-4, npo(0.01)),  # at GA's rate, to show what beta -> 0 is
    "NPO(beta=0.001)": Arm(5e-4, npo(0.001)),
}
TAUGHT = {"smoke": (20, 4), "quick": (400, 60), "full": (400, 60)}  # C: steps to train the start model, to unlearn
TEACH = Fit(lr=2e-3, rows=16, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)
LOOK = 5  # steps between two evaluations
AS_GOLD = 2.0  # forgotten: answers at most this many times as likely as under the gold model
TOLD: dict[str, tuple[float, dict[str, Any]]] = {  # learning rate and options
    "NPO+RT": (3e-4, {"beta": 1.0}),
    "GA+RT": (3e-4, {"loss": "ga"}),
    "GA": (3e-4, {"loss": "ga", "regulariser": "none"}),
}

problem = npo_example.problem


def run(seed: int, tier: runner.Tier, clouded: bool = True, told: Sequence[str] = tuple(TOLD)) -> runner.Measured:
    """Measure one seed: clouds (A and B) if `clouded`, and the arms `told` on invented authors (C)."""
    return (_unlearn_clouds(seed, tier) if clouded else {}) | (_unlearn_authors(seed, tier, told) if told else {})


def _unlearn_clouds(seed: int, tier: runner.Tier) -> dict[str, dict[str, float]]:
    """Run every arm of A and both of B on one seed."""
    train, steps, divergence_steps = LENGTH[tier]
    world = logistic.clouds(seed)
    start, gold = _start_and_gold(seed, train)
    paths, arms = {}, {}
    for name, arm in ARMS.items():
        paths[name], weights = clouds.unlearn(world, start, arm, steps)
        arms[name] = clouds.measures(world, gold, paths[name], FORGOTTEN)
        if name.startswith("NPO"):
            arms[name] |= {"weight_start": weights[0], "weight_end": weights[-1]}
    for name in ("NPO(beta=0.01)", "NPO(beta=0.001)"):
        gap = (paths[name] - paths["GA"]).norm(dim=1)[1:] / (paths["GA"] - start).norm(dim=1)[1:]
        arms[name]["gap"] = float(gap.max())
    arms["start"] = {
        "forget": clouds.distance(gold, start, world.test_forget),
        "retain": clouds.distance(gold, start, world.test_retain),
    }
    arms["GA"] |= clouds.divergence(seed, lambda logp, _: logp.mean(), divergence_steps)
    arms["NPO"] |= clouds.divergence(seed, lambda logp, ref: preference.npo(logp, ref, 1.0).mean(), divergence_steps)
    return arms


@lab.shared
def _start_and_gold(seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """Train on all rows, and on the retain rows only."""
    world = logistic.clouds(seed)
    retain, forget = world.retain, world.forget
    both = logistic.Cloud(*(torch.cat([getattr(retain, f), getattr(forget, f)]) for f in ("phi", "y", "p0")))
    return clouds.descend(both, steps), clouds.descend(retain, steps)


def _unlearn_authors(seed: int, tier: runner.Tier, arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """Part C: run the method and gradient ascent from one model, evaluated every few steps."""
    teach, steps = TAUGHT[tier]
    world = authors.authors(seed, forget=2, retain=6, unseen=3, holdout=2)
    retained = world.retain + world.unseen
    texts = [f"{r.prompt} {r.completion}" for r in world.forget + retained + world.holdout]
    base = lab.blank("llama", texts, 600, d=64, layers=2, heads=4, context=64, seed=seed)
    start, gold = (
        lab.tuned(base, facts, TEACH.replace(steps=teach, seed=seed)) for facts in (world.forget + retained, retained)
    )

    def measure(module: Any) -> dict[str, float]:
        model = Model(module, start.processor)
        forget, unseen = (forgetting.answers(model, part) for part in (world.forget, world.unseen))
        return {"forget": float(forget["probability"].mean()), "kept": float(unseen["accuracy"].mean())}

    out = {"told start": measure(start.module), "told gold": measure(gold.module)}
    for name in arms:
        lr, options = TOLD[name]
        checks = every(LOOK, lambda step: measure(step.module))
        fit = Fit(lr=lr, steps=steps, rows=20, warmup_steps=3, seed=seed)
        unlearning.npo(start, world.forget, world.retain, **options, fit=fit, hooks=[checks])
        crossing = next(
            (row for row in checks.rows if row["forget"] <= AS_GOLD * out["told gold"]["forget"]), checks.rows[-1]
        )
        out[f"told {name}"] = {k: checks.rows[-1][k] for k in ("forget", "kept")} | {
            "least": min(row["forget"] for row in checks.rows), "kept_forgotten": crossing["kept"],
        }  # fmt: skip
    return out


_npo = preference.npo  # the original loss, which the sabotages wrap
PATCHED = "didact.objectives.preference:npo"
AT_END, AS_GA, GONE = "retain at the end", "starts as GA", "authors are forgotten as if never told of"
FACTS, CLOUDS, ONE = "token accuracy", {"told": ()}, {"clouded": False, "told": ("NPO+RT",)}

CLAIM = runner.Claim(
    method="npo",
    text=(
        "NPO with a retain loss forgets, and keeps more of what was to be kept than gradient ascent with a retain loss "
        "both when each has forgotten and at the end. Gradient ascent alone collapses, running away linearly in time; "
        "NPO runs away logarithmically. NPO starts as gradient ascent and is gradient ascent as beta -> 0."
    ),
    run=run,
    gates=(
        gate("there is something to forget", "start.forget", at_least=0.5, unit="nats"),
        gate("authors are known", "told start.forget", at_least=0.7, unit="probability"),
        gate("the baseline forgets", "GA+RT.forget_left", at_most=FORGOTTEN, unit="of the start's distance"),
    ),
    tests=(
        ratio(GONE, "told NPO+RT.least", "told gold.forget", AS_GOLD),
        difference("authors kept at the end", "told NPO+RT.kept", "told GA+RT.kept", FACTS, margin=0.1),
        difference("authors kept when others are forgotten", "told NPO+RT.kept_forgotten", "told GA+RT.kept_forgotten",
                   FACTS, reported=True),
        difference("GA loses authors", "told GA.kept", "told start.kept", FACTS, null=-0.1, less=True),
        ratio("forgets", "NPO+RT.forget_min", "start.forget", FORGOTTEN),
        ratio(AT_END, "NPO+RT.retain_end", "GA+RT.retain_end", effect=1.5),
        ratio("retain when forgotten", "NPO+RT.retain_crossing", "GA+RT.retain_crossing", effect=1.25),
        ratio("GA collapses", "GA.retain_crossing", "GA.retain_end", 0.1),
        exact(AS_GA, "NPO+RT.weight_start", 1.0, 1e-9, "mean W"),
        bound("weight falls", "NPO+RT.weight_end", 0.5, less=True),
        bound("becomes GA", "NPO(beta=0.001).gap", 0.05, less=True),
        bound("GA runs away linearly", "GA.r2_linear", 0.99),
        bound("NPO runs away logarithmically", "NPO.r2_log", 0.99),
        ratio("GA runs away faster", "NPO.displacement", "GA.displacement", 1 / 20),
        bound("beta = 0.01 is GA within 5 %", "NPO(beta=0.01).gap", 0.05, less=True, reported=True),
        ratio("best point, against GA+RT", "NPO+RT.sum_min", "GA+RT.sum_min", reported=True),
        ratio("best point, against DPO+RT", "NPO+RT.sum_min", "DPO+RT.sum_min", reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign flipped", GONE, "told NPO+RT.least",
                        {PATCHED: lambda logp, ref_logp, beta: _npo(ref_logp, logp, beta)}, ONE),
        runner.Sabotage("reference dropped", AS_GA, "NPO+RT.weight_start",
                        {PATCHED: lambda logp, ref_logp, beta: _npo(logp, torch.zeros_like(ref_logp), beta)}, CLOUDS),
        runner.Sabotage("reference follows the model", AT_END, "NPO+RT.retain_end",
                        {PATCHED: lambda logp, ref_logp, beta: _npo(logp, logp.detach(), beta)}, CLOUDS),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 20},
)  # fmt: skip
