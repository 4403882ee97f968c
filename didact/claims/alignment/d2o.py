"""D2O's claim on a grammar whose bad answers are known exactly: it unlearns them and keeps the good ones.

The start model gives good and spoiled answers; the method sees spoiled ones only. Every arm has the same steps on the
same records. Arms are compared where good answers have become equally less likely (`RISE`), each at the one of three
rates (1e-4, 3e-4, 1e-3) that gave the fewest bad answers there, mean of seeds 1000 to 1002: D2O .221 (.228 and .280 at
the other rates), NPO .252 (.257, .277), ascent .256 (.258, .276), DPO with own answers chosen .211 (.244, .282). Final
models are compared at D2O's rate (`fast`). Harm as people judge it cannot be tested: here a mark stands for it.
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
from didact.types import Demo, Fit, Preference, Result

STEPS = {"smoke": (20, 4), "quick": (600, 60), "full": (700, 60)}  # to tune the start model; to train an arm
ASKED = {"smoke": 64, "quick": 400, "full": 1024}
GRADIENTS = {"smoke": 4, "quick": 24, "full": 48}  # steps whose gradients' variance is measured
RISE = 1.0  # nats an answer, a tenth of the nll of good answers: where methods are compared
SCALE = 0.3  # alpha and beta, the pilot's
RATE, RATES = 3e-4, {"npo": 1e-4, "ga": 1e-4}
NPO, GA = {"loss": "npo"}, {"loss": "ga"}
ARMS: dict[str, dict[str, Any] | None] = {
    "d2o": {"k": 11}, "npo": NPO, "ga": GA, "noisy": None, "fast npo": NPO, "fast ga": GA,
}  # fmt: skip

problem = example.problem


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), gradients: bool = True) -> runner.Measured:
    """The start and every arm on one seed; D2O samples anchors offline for two thirds of the steps, then online."""
    tune_steps, steps = STEPS[tier]
    start = example.tuned(example.world(seed).demos(1, 2000, spoiled=example.SPOILED), seed, steps=tune_steps)
    out: dict[str, dict[str, float]] = {"start": _measures(start, seed, tier)}
    phases = {"offline_steps": max(1, 2 * steps // 3), "every": max(1, steps // 3)}
    for name in arms:
        path, options = _Path(start), ARMS[name]
        fit = Fit(lr=RATES.get(name, RATE), steps=steps, rows=8, schedule="constant", seed=seed)
        if options is None:
            _noisy_dpo(start, seed, fit, [path])
        else:
            _d2o_from(start, seed, phases | options, fit, [path])
        out[name] = _measures(_load(start, path.seen[-1]), seed, tier)
        if not name.startswith("fast"):
            out[name]["bad_at"] = _bad_at(start, path.seen, seed, tier)
    for name, k in (("d2o", 11), ("d2o(k=1)", 1)) if gradients else ():
        out.setdefault(name, {})["variance"] = _variance(start, seed, tier, k)
    return out


def _load(model: Model, weights: Tensor) -> Model:
    torch.nn.utils.vector_to_parameters(weights, (model := copy_of(model)).module.parameters())
    return model


def _bad_at(start: Model, path: Sequence[Tensor], seed: int, tier: runner.Tier) -> float:
    """Rate of bad answers where the nll of good ones has risen by `RISE`, by bisection; at the end if it never does."""
    low, high, cost = 0, len(path) - 1, {i: _cost(_load(start, path[i]), seed, tier) for i in (0, len(path) - 1)}
    target = cost[0] + RISE
    while high - low > 1 and cost[high] >= target:
        middle = (low + high) // 2
        cost[middle] = _cost(_load(start, path[middle]), seed, tier)
        low, high = (low, middle) if cost[middle] >= target else (middle, high)
    rates = [_measures(_load(start, path[i]), seed, tier)["bad"] for i in (low, high)]
    return float(np.interp(target, [cost[low], cost[high]], rates)) if cost[high] >= target else rates[1]


def _cost(model: Model, seed: int, tier: runner.Tier) -> float:
    return -float(lab.logp(model, _demos(seed, tier))[0].mean())


@lab.shared
def _demos(seed: int, tier: runner.Tier) -> list[Demo]:
    return example.world(seed).demos(2, ASKED[tier])


def _noisy_dpo(start: Model, seed: int, fit: Fit, hooks: Any) -> None:
    """DPO with the start model's own answers as chosen: two fifths of these are bad too."""
    bad = example.negatives(seed)
    own = lab.sampled(start, [d.prompt for d in bad], example.ANSWER, seed)
    pairs = [Preference(prompt=d.prompt, chosen=a, rejected=d.completion) for d, a in zip(bad, own, strict=True) if a]
    baselines.dpo(start, pairs, beta=SCALE, fit=fit, hooks=hooks)


def _d2o_from(start: Model, seed: int, options: Mapping[str, Any], fit: Fit, hooks: Any = ()) -> Result:
    settings: dict[str, Any] = {"alpha": SCALE, "beta": SCALE, "max_new_tokens": example.ANSWER, **options}
    return alignment.d2o(start, example.negatives(seed), **settings, fit=fit, hooks=hooks)


def _variance(start: Model, seed: int, tier: runner.Tier, k: int) -> float:
    """Variance of the gradient over its squared mean, at the start (SGD with a rate that hardly moves the weights)."""
    lr, path = 1e-4, _Path(start)
    fit = Fit(lr=lr, steps=GRADIENTS[tier], rows=8, schedule="constant", optimizer="sgd", clip=0.0, seed=seed)
    _d2o_from(start, seed, {"k": k, "draw": "offline"}, fit, [path])
    gradients = torch.stack(path.seen).double().diff(dim=0) / lr
    mean = gradients.mean(0)
    return float((gradients - mean).square().sum(1).mean() / mean.square().sum())


class _Path(Hook):
    """Hook that records the weights at the start and after every step."""

    def __init__(self, start: Model) -> None:
        self.seen = [_weights(start.module)]

    def after(self, step: Step) -> None:
        self.seen.append(_weights(step.module))


def _weights(module: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach()


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On held-out prompts: shares of bad and of valid answers among samples, and the nll of good answers, nats each."""
    grammar, demos = example.world(seed), _demos(seed, tier)
    answers = lab.sampled(model, [d.prompt for d in demos], example.ANSWER, seed)
    return {
        "bad": lab.mean(map(grammar.spoiled, answers)),
        "valid": lab.mean(grammar.valid(d.prompt, a) for d, a in zip(demos, answers, strict=True)),
        "good_nll": _cost(model, seed, tier),
    }


_d2o = preference.d2o  # the intact loss, which the sabotages wrap
PATCHED = "didact.objectives.preference:d2o"


def _flipped(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, -n, ra, -rn, beta, alpha, *rest)


def _without_anchors(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, n, ra, rn, 0.0, alpha, *rest)


def _moving_references(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, n, a, n, beta, alpha, *rest)  # with gradients: z stays 0


ANSWERS, NATS, SAME = "of sampled answers", "nats an answer", "at the same cost, fewer bad answers than"
FEWER, KEEPS = "fewer bad answers", "keeps good answers better than NPO"

CLAIM = runner.Claim(
    method="d2o",
    text=(
        "From bad answers alone, D2O gives fewer of them at the same cost to good answers than gradient ascent, NPO or "
        "DPO with the model's own answers as chosen. At its rate ascent and NPO end without the good ones; more "
        "answers of the model's own make the gradient less noisy."
    ),
    run=run,
    gates=(gate("the start gives bad answers", "start.bad", at_least=0.2, unit=ANSWERS),),
    tests=(
        difference(FEWER, "d2o.bad", "start.bad", ANSWERS, null=-0.05, less=True),
        difference("keeps good answers better than ascent", "d2o.good_nll", "fast ga.good_nll", NATS, less=True),
        difference(KEEPS, "d2o.good_nll", "fast npo.good_nll", NATS, less=True),
        difference("ascent gives fewer valid answers", "fast ga.valid", "d2o.valid", ANSWERS, less=True),
        difference(f"{SAME} ascent", "d2o.bad_at", "ga.bad_at", ANSWERS, less=True),
        difference(f"{SAME} NPO", "d2o.bad_at", "npo.bad_at", ANSWERS, less=True),
        difference(f"{SAME} DPO with own answers chosen", "d2o.bad_at", "noisy.bad_at", ANSWERS, less=True),
        ratio("more anchors, less noise", "d2o.variance", "d2o(k=1).variance"),
        ratio("at the end, bad answers below a fifth of the start's", "d2o.bad", "start.bad", 1 / 5, reported=True),
        difference("good answers as likely as before", "d2o.good_nll", "start.good_nll", less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign of the bad answers flipped", FEWER, "d2o.bad", {PATCHED: _flipped},
                        {"arms": ("d2o",), "gradients": False}),
        runner.Sabotage("anchors dropped", KEEPS, "d2o.good_nll", {PATCHED: _without_anchors},
                        {"arms": ("d2o", "fast npo"), "gradients": False}),
        runner.Sabotage("references follow the model", FEWER, "d2o.bad", {PATCHED: _moving_references},
                        {"arms": ("d2o",), "gradients": False}),
    ),
)  # fmt: skip
