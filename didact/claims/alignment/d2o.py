"""D2O's claim on a grammar whose bad answers are known exactly: they go, and the rest stays.

The start gives good and spoiled answers; the method sees spoiled ones only. Every arm has the same steps on the same
records, at the one of two rates that left most valid answers on seed 1000. What the paper calls harmful has a mark
here: harm as people see it cannot be tested at this size.

What good answers cost after a collapse varies threefold between seeds, so it is compared on a log scale: ascent must
cost twice as much. In the first run the test was in nats, against a difference of 20, and was inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from didact import alignment
from didact.claims import lab, runner
from didact.claims.alignment import d2o_example as example
from didact.claims.lab import difference, gate, ratio
from didact.evaluate.protocols import Scoring, collapse, judged
from didact.learn.fit import Hook, Step
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit, Result

STEPS = {"smoke": (20, 4), "quick": (700, 60), "full": (700, 120)}  # to tune the start; to teach
ASKED = {"smoke": 64, "quick": 512, "full": 1024}
GRADIENTS = {"smoke": 4, "quick": 24, "full": 48}  # whose variance is taken
SCALE = 0.3  # alpha and beta, the pilot's
RATES = (1e-4, 5e-4)  # tuned over
ARMS: Mapping[str, tuple[dict[str, Any], float]] = {  # the slower rate left most valid answers in every arm
    "d2o": ({"k": 11}, RATES[0]),
    "d2o(k=1)": ({"k": 1}, RATES[0]),
    "npo": ({"loss": "npo"}, RATES[0]),
    "ga": ({"loss": "ga"}, RATES[0]),
    "d2o, fast": ({"k": 11}, RATES[1]),
    "ga, fast": ({"loss": "ga"}, RATES[1]),
}

problem = example.problem


def run(
    seed: int, tier: runner.Tier, arms: tuple[str, ...] = tuple(ARMS), gradients: bool = True
) -> dict[str, dict[str, float]]:
    """The start and every arm on one seed: anchors offline for two thirds of the steps, drawn anew for the rest."""
    tune, steps = STEPS[tier]
    start = example.tuned(example.world(seed).demos(1, 2000, spoiled=example.SPOILED), seed, steps=tune)
    out = {"start": _measures(start, seed, tier)}
    phases = {"offline_steps": max(1, 2 * steps // 3), "every": max(1, steps // 3)}
    for name in arms:
        result = _d2o_from(start, seed, name, phases, Fit(lr=ARMS[name][1], steps=steps, seed=seed))
        model, scoring = (
            lab.model_of(result),
            Scoring(records={"judged": example.negatives(seed)}, start=start, seed=seed),
        )
        scores = judged.score(model, scoring) | collapse.score(model, scoring)
        out[name] = _measures(model, seed, tier) | {"first_loss": result.history[0]["loss"]}
        out[name] |= {measure: scores[measure].value for measure in ("bad_nll", "entropy")}
    for name in ("d2o", "d2o(k=1)") if gradients else ():
        out[name]["variance"] = _variance(start, seed, tier, name)
    return out


def _d2o_from(start: Model, seed: int, arm: str, options: Mapping[str, Any], fit: Fit, hooks: Any = ()) -> Result:
    how: dict[str, Any] = {"alpha": SCALE, "beta": SCALE, "max_new_tokens": example.ANSWER, **ARMS[arm][0], **options}
    fit = fit.replace(rows=8, schedule="constant")
    return alignment.d2o(start, example.negatives(seed), **how, fit=fit, hooks=hooks)


def _variance(start: Model, seed: int, tier: runner.Tier, arm: str) -> float:
    """Variance of the steps' gradients over the square of their mean, at the start (plain descent, hardly moving)."""
    lr, path = 1e-4, _Path()
    fit = Fit(lr=lr, steps=GRADIENTS[tier], optimizer="sgd", clip=0.0, seed=seed)
    _d2o_from(start, seed, arm, {"draw": "offline"}, fit, [path])
    moves = torch.stack(path.seen).double().diff(dim=0) / lr
    mean = moves.mean(0)
    return float((moves - mean).square().sum(1).mean() / mean.square().sum())


class _Path(Hook):
    """The weights before and after every step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def before(self, step: Step) -> None:
        if not self.seen:
            self.after(step)

    def after(self, step: Step) -> None:
        self.seen.append(torch.cat([p.detach().flatten().clone() for p in step.module.parameters()]))


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On prompts no training saw: bad and good answers among the sampled, and what good answers cost, nats each."""
    grammar = example.world(seed)
    asked = grammar.demos(2, ASKED[tier])
    answers = lab.sampled(model, [d.prompt for d in asked], example.ANSWER, seed)
    return {
        "bad": lab.mean(map(grammar.spoiled, answers)),
        "valid": lab.mean(grammar.valid(d.prompt, a) for d, a in zip(asked, answers, strict=True)),
        "good_nll": -float(lab.logp(model, asked)[0].mean()),
        "length": lab.mean(map(len, answers)),
    }


_d2o = preference.d2o  # the intact loss, which the sabotages wrap
PATCHED = "didact.objectives.preference:d2o"


def _sign(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, -n, ra, -rn, beta, alpha, *rest)


def _no_anchors(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, n, ra, rn, 0.0, alpha, *rest)


def _follows(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, n, a, n, beta, alpha, *rest)  # gradient and all: z stays 0


ONE = {"arms": ("d2o", "ga"), "gradients": False}
ANSWERS, NATS = "of sampled answers", "nats an answer"
FEWER, KEEPS = "fewer bad answers", "keeps good answers better than ascent"

CLAIM = runner.Claim(
    method="d2o",
    text=(
        "From bad answers alone, D2O all but stops them where gradient ascent and NPO also lose the good ones: answers "
        "of the model's own hold it, and more of them make the gradient less noisy."
    ),
    run=run,
    gates=(gate("the start gives bad answers", "start.bad", at_least=0.2, unit=ANSWERS),),
    tests=(
        difference(FEWER, "d2o.bad", "start.bad", ANSWERS, null=-0.05, less=True),
        difference(KEEPS, "d2o.good_nll", "ga.good_nll", NATS, less=True),
        difference("keeps good answers better than NPO", "d2o.good_nll", "npo.good_nll", NATS, less=True),
        difference("ascent gives fewer valid answers", "ga.valid", "d2o.valid", ANSWERS, less=True),
        ratio("ascent collapses sooner", "d2o, fast.good_nll", "ga, fast.good_nll", 1 / 2),
        ratio("more anchors, less noise", "d2o.variance", "d2o(k=1).variance"),
        difference("as few bad answers as NPO", "d2o.bad", "npo.bad", less=True, reported=True),
        ratio("fast, bad answers below a fifth of the start's", "d2o, fast.bad", "start.bad", 1 / 5, reported=True),
        difference("more anchors keep more", "d2o.good_nll", "d2o(k=1).good_nll", less=True, reported=True),
        difference("good answers as likely as at the start", "d2o.good_nll", "start.good_nll", less=True,
                   reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign of the bad answers flipped", FEWER, "d2o.bad", {PATCHED: _sign}, ONE),
        runner.Sabotage("anchors dropped", KEEPS, "d2o.good_nll", {PATCHED: _no_anchors}, ONE),
        runner.Sabotage("references follow the model", FEWER, "d2o.bad", {PATCHED: _follows}, ONE),
    ),
)  # fmt: skip
