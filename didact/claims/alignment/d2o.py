"""D2O's claim on a grammar whose bad answers are known exactly: they go, and the rest stays.

The start gives good and spoiled answers; the method sees spoiled ones only. Every arm has the same steps on the same
records, at the one of two rates that left most valid answers on seed 1000. What the paper calls harmful has a mark
here: harm as people see it cannot be tested at this size.

What good answers cost after a collapse varies threefold between seeds, so it is compared on a log scale: ascent must
cost twice as much. In the first run the test was in nats, against a difference of 20, and was inconclusive.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact import alignment
from didact.claims import runner, verdict
from didact.claims.alignment import d2o_example
from didact.data import encode
from didact.evaluate import protocols
from didact.evaluate.protocols import collapse, judged
from didact.infer import generate
from didact.learn import episodes
from didact.learn.fit import Hook, Step
from didact.models import forward
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit

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


def problem(seed: int) -> Any:
    """What `didact run d2o` teaches when given no model and data."""
    return d2o_example.problem(seed)


@episodes.one_thread()
def run(
    seed: int, tier: runner.Tier, arms: tuple[str, ...] = tuple(ARMS), gradients: bool = True
) -> dict[str, dict[str, float]]:
    """The start and every arm on one seed."""
    start = _start(seed, tier)
    out = {"start": _measures(start, seed, tier)}
    for name in arms:
        options, lr = ARMS[name]
        out[name] = _taught(start, seed, tier, options, lr)
    for name in ("d2o", "d2o(k=1)") if gradients else ():
        out[name]["variance"] = _variance(start, seed, tier, ARMS[name][0])
    return out


def _taught(start: Model, seed: int, tier: runner.Tier, options: Mapping[str, Any], lr: float) -> dict[str, float]:
    """One arm: anchors offline for the first two thirds, drawn anew for the rest."""
    steps = STEPS[tier][1]
    bad = d2o_example.negatives(seed)
    result = alignment.d2o(
        start, bad, **options, alpha=SCALE, beta=SCALE, max_new_tokens=d2o_example.ANSWER,
        offline_steps=max(1, 2 * steps // 3), every=max(1, steps // 3),
        fit=Fit(lr=lr, steps=steps, rows=8, schedule="constant", seed=seed),
    )  # fmt: skip
    taught = result.models["model"]
    assert isinstance(taught, Model)
    scoring = protocols.Scoring(records={"judged": bad}, start=start, seed=seed)
    scores = judged.score(taught, scoring) | collapse.score(taught, scoring)
    kept = {name: scores[name].value for name in ("bad_nll", "entropy")}
    return _measures(taught, seed, tier) | {"first_loss": result.history[0]["loss"]} | kept


def _variance(start: Model, seed: int, tier: runner.Tier, options: Mapping[str, Any]) -> float:
    """Variance of the steps' gradients over the square of their mean, at the start (plain descent, hardly moving)."""
    lr, path = 1e-4, _Path()
    fit = Fit(lr=lr, steps=GRADIENTS[tier], rows=8, schedule="constant", optimizer="sgd", clip=0.0, seed=seed)
    alignment.d2o(
        start, d2o_example.negatives(seed), **options, alpha=SCALE, beta=SCALE, max_new_tokens=d2o_example.ANSWER,
        draw="offline", fit=fit, hooks=[path],
    )  # fmt: skip
    moves = torch.stack(path.seen).double().diff(dim=0) / lr
    mean = moves.mean(0)
    return float((moves - mean).square().sum(1).mean() / mean.square().sum())


class _Path(Hook):
    """The weights before and after every step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def before(self, step: Step) -> None:
        if not self.seen:
            self._look(step)

    def after(self, step: Step) -> None:
        self._look(step)

    def _look(self, step: Step) -> None:
        self.seen.append(torch.cat([p.detach().flatten().clone() for p in step.module.parameters()]))


@functools.lru_cache(maxsize=64)
def _start(seed: int, tier: runner.Tier) -> Model:
    """Shared by the arms of a seed and by its sabotages, none of which touches this training."""
    demos = d2o_example.world(seed).demos(1, 2000, spoiled=d2o_example.SPOILED)
    return d2o_example.tuned(demos, seed, steps=STEPS[tier][0])


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On prompts no training saw: bad and good answers among the sampled, and what good answers cost, nats each."""
    grammar = d2o_example.world(seed)
    asked = grammar.demos(2, ASKED[tier])
    how = generate.SamplingConfig(max_new_tokens=d2o_example.ANSWER, temperature=1.0, seed=seed, rows=256)
    made = [m[0] for m in generate.sample(model, [d.prompt for d in asked], 1, how)]
    rows = encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in asked], model.kind, model.context)
    return {
        "bad": float(np.mean([grammar.spoiled(m) for m in made])),
        "valid": float(np.mean([grammar.valid(d.prompt, m) for d, m in zip(asked, made, strict=True)])),
        "good_nll": -float(forward.row_logp(model, rows)[0].mean()),
        "length": float(np.mean([len(m) for m in made])),
    }


_d2o = preference.d2o  # the intact loss, which the sabotages wrap
_PATCHED = "didact.objectives.preference:d2o"


def _sign(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, -n, ra, -rn, beta, alpha, *rest)


def _no_anchors(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, n, ra, rn, 0.0, alpha, *rest)


def _follows(a: Any, n: Any, ra: Any, rn: Any, beta: float, alpha: float, *rest: Any) -> Any:
    return _d2o(a, n, a, n, beta, alpha, *rest)  # gradient and all: z stays 0


def _less(name: str, a: str, b: str, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="difference", a=a, b=b, direction="less", **more)


_ONE = {"arms": ("d2o", "ga"), "gradients": False}

CLAIM = runner.Claim(
    method="d2o",
    text=(
        "From bad answers alone, D2O all but stops them where gradient ascent and NPO also lose the good ones: answers "
        "of the model's own hold it, and more of them make the gradient less noisy."
    ),
    run=run,
    gates=(verdict.gate("the start gives bad answers", "start.bad", at_least=0.2, unit="of sampled answers"),),
    tests=(
        _less("fewer bad answers", "d2o.bad", "start.bad", null=-0.05, unit="of sampled answers"),
        _less("keeps good answers better than ascent", "d2o.good_nll", "ga.good_nll", unit="nats an answer"),
        _less("keeps good answers better than NPO", "d2o.good_nll", "npo.good_nll", unit="nats an answer"),
        _less("ascent gives fewer valid answers", "ga.valid", "d2o.valid", unit="of sampled answers"),
        _less("ascent collapses sooner", "d2o, fast.good_nll", "ga, fast.good_nll", transform="log", null=-math.log(2),
              unit="log ratio"),
        _less("more anchors, less noise", "d2o.variance", "d2o(k=1).variance", transform="log", unit="log ratio"),
        _less("as few bad answers as NPO", "d2o.bad", "npo.bad", gates="none"),
        _less("fast, bad answers below a fifth of the start's", "d2o, fast.bad", "start.bad", transform="log",
              null=-math.log(5), gates="none"),
        _less("more anchors keep more", "d2o.good_nll", "d2o(k=1).good_nll", gates="none"),
        _less("good answers as likely as at the start", "d2o.good_nll", "start.good_nll", gates="none"),
    ),
    sabotages=(
        runner.Sabotage(
            name="sign of the bad answers flipped", breaks="fewer bad answers", patch={_PATCHED: _sign},
            options=_ONE, metric="d2o.bad",
        ),
        runner.Sabotage(
            name="anchors dropped", breaks="keeps good answers better than ascent", patch={_PATCHED: _no_anchors},
            options=_ONE, metric="d2o.good_nll",
        ),
        runner.Sabotage(
            name="references follow the model", breaks="fewer bad answers", patch={_PATCHED: _follows},
            options=_ONE, metric="d2o.bad",
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
