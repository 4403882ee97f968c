"""D2O's claim on a grammar whose bad answers are known exactly: they go, and the rest stays.

The start gives good and spoiled answers; the method sees spoiled ones only. Every arm has the same steps on the same
records, and is looked at on the way: methods are compared where they have lost as much on good answers (`RISE`), and at
the end. All have one rate, between the two (1e-4 and 5e-4) that an earlier form of this claim had on seed 1000; at the
first D2O left two thirds of the bad answers, at the second ascent left nothing valid. What the paper calls harmful has
a mark here: harm as people see it cannot be tested at this size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact import alignment, baselines
from didact.claims import lab, runner
from didact.claims.alignment import d2o_example as example
from didact.claims.lab import difference, gate, ratio
from didact.learn.fit import Hook, Step
from didact.models.model import Model, copy_of
from didact.objectives import preference
from didact.types import Fit, Preference, Result

STEPS = {"smoke": (20, 4), "quick": (600, 60), "full": (700, 60)}  # to tune the start; to teach
ASKED = {"smoke": 64, "quick": 512, "full": 1024}
GRADIENTS = {"smoke": 4, "quick": 24, "full": 48}  # whose variance is taken
EVERY = 5  # steps between two looks
RISE = 1.0  # nats an answer, a tenth of what good answers cost: where methods are compared
SCALE = 0.3  # alpha and beta, the pilot's
RATE, COMPARED = 3e-4, ("d2o", "npo", "ga", "noisy")
ARMS: Mapping[str, dict[str, Any]] = {
    "d2o": {"k": 11}, "d2o(k=1)": {"k": 1}, "npo": {"loss": "npo"}, "ga": {"loss": "ga"},
}  # fmt: skip

problem = example.problem


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = COMPARED, gradients: bool = True) -> runner.Measured:
    """The start and every arm on one seed: anchors offline for two thirds of the steps, drawn anew for the rest."""
    tune, steps = STEPS[tier]
    start = example.tuned(example.world(seed).demos(1, 2000, spoiled=example.SPOILED), seed, steps=tune)
    out: dict[str, dict[str, float]] = {"start": _measures(start, seed, tier)}
    phases = {"offline_steps": max(1, 2 * steps // 3), "every": max(1, steps // 3)}
    for name in arms:
        path = _Path()
        fit = Fit(lr=RATE, steps=steps, rows=8, schedule="constant", seed=seed)
        if name == "noisy":
            _noisy(start, seed, fit, [path])
        else:
            _d2o_from(start, seed, name, phases, fit, [path])
        models = [_with(start, weights) for weights in (*path.seen[:-1:EVERY], path.seen[-1])]
        out[name] = _measures(models[-1], seed, tier) | {"bad_at": _bad_at(models, seed, tier)}
    for name in ("d2o", "d2o(k=1)") if gradients else ():
        out.setdefault(name, {})["variance"] = _variance(start, seed, tier, name)
    return out


def _with(model: Model, weights: Tensor) -> Model:
    torch.nn.utils.vector_to_parameters(weights, (model := copy_of(model)).module.parameters())
    return model


def _bad_at(path: Sequence[Model], seed: int, tier: runner.Tier) -> float:
    """Bad answers where good ones first cost `RISE` more than at the start, or at the end."""
    cost = [_cost(model, seed, tier) for model in path]
    at = next((i for i, c in enumerate(cost) if c >= cost[0] + RISE), 0)
    if not at:
        return _measures(path[-1], seed, tier)["bad"]
    bad = [_measures(model, seed, tier)["bad"] for model in path[at - 1 : at + 1]]
    return float(np.interp(cost[0] + RISE, cost[at - 1 : at + 1], bad))


def _cost(model: Model, seed: int, tier: runner.Tier) -> float:
    return -float(lab.logp(model, example.world(seed).demos(2, ASKED[tier]))[0].mean())


def _noisy(start: Model, seed: int, fit: Fit, hooks: Any) -> None:
    """DPO with the start's own answers as chosen: two fifths of these are bad too."""
    bad = example.negatives(seed)
    own = lab.sampled(start, [d.prompt for d in bad], example.ANSWER, seed)
    pairs = [Preference(prompt=d.prompt, chosen=a, rejected=d.completion) for d, a in zip(bad, own, strict=True) if a]
    baselines.dpo(start, pairs, beta=SCALE, fit=fit, hooks=hooks)


def _d2o_from(start: Model, seed: int, arm: str, options: Mapping[str, Any], fit: Fit, hooks: Any = ()) -> Result:
    how: dict[str, Any] = {"alpha": SCALE, "beta": SCALE, "max_new_tokens": example.ANSWER, **ARMS[arm], **options}
    return alignment.d2o(start, example.negatives(seed), **how, fit=fit, hooks=hooks)


def _variance(start: Model, seed: int, tier: runner.Tier, arm: str) -> float:
    """Variance of the steps' gradients over the square of their mean, at the start (plain descent, hardly moving)."""
    lr, path = 1e-4, _Path()
    fit = Fit(lr=lr, steps=GRADIENTS[tier], rows=8, schedule="constant", optimizer="sgd", clip=0.0, seed=seed)
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
        "good_nll": _cost(model, seed, tier),
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


ANSWERS, NATS, SAME = "of sampled answers", "nats an answer", "at the same cost, fewer bad answers than"
FEWER, KEEPS = "fewer bad answers", "keeps good answers better than NPO"

CLAIM = runner.Claim(
    method="d2o",
    text=(
        "From bad answers alone, D2O gives fewer of them at the same cost to good answers than gradient ascent, NPO or "
        "DPO with the model's own answers as chosen. Ascent and NPO end without the good ones; more answers of the "
        "model's own make the gradient less noisy."
    ),
    run=run,
    gates=(gate("the start gives bad answers", "start.bad", at_least=0.2, unit=ANSWERS),),
    tests=(
        difference(FEWER, "d2o.bad", "start.bad", ANSWERS, null=-0.05, less=True),
        difference("keeps good answers better than ascent", "d2o.good_nll", "ga.good_nll", NATS, less=True),
        difference(KEEPS, "d2o.good_nll", "npo.good_nll", NATS, less=True),
        difference("ascent gives fewer valid answers", "ga.valid", "d2o.valid", ANSWERS, less=True),
        difference(f"{SAME} ascent", "d2o.bad_at", "ga.bad_at", ANSWERS, less=True),
        difference(f"{SAME} NPO", "d2o.bad_at", "npo.bad_at", ANSWERS, less=True),
        difference(f"{SAME} DPO with own answers chosen", "d2o.bad_at", "noisy.bad_at", ANSWERS, less=True),
        ratio("more anchors, less noise", "d2o.variance", "d2o(k=1).variance"),
        ratio("at the end, bad answers below a fifth of the start's", "d2o.bad", "start.bad", 1 / 5, reported=True),
        difference("good answers as likely as at the start", "d2o.good_nll", "start.good_nll", less=True,
                   reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign of the bad answers flipped", FEWER, "d2o.bad", {PATCHED: _sign},
                        {"arms": ("d2o",), "gradients": False}),
        runner.Sabotage("anchors dropped", KEEPS, "d2o.good_nll", {PATCHED: _no_anchors},
                        {"arms": ("d2o", "npo"), "gradients": False}),
        runner.Sabotage("references follow the model", FEWER, "d2o.bad", {PATCHED: _follows},
                        {"arms": ("d2o",), "gradients": False}),
    ),
)  # fmt: skip
