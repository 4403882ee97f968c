"""NPO's claim on a pre-trained model: capitals it demonstrably knows, six of them to be forgotten.

The prompt is the one that the model answers best; countries it does not know are left out. Each seed splits the rest
into forget set, retain set, and neighbours outside training, on which the damage is measured: at the end, and at the
first evaluation where the answers are forgotten. Each arm has the learning rate with the largest difference at the end
on seed 1000 (probability of neighbours minus that of forget answers): npo of nine from 1e-5 to 3e-3 (.25 at 3e-4, .63
at 1e-3, .66 at 2e-3, .64 at 3e-3), ascent of eight up to 2e-3 (.12 at 1e-5 and 6e-4, .19 at 1e-3, .18 at 2e-3); ascent
alone, which is reported, was tried from 1e-5 to 1e-4.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

from didact import unlearning
from didact.claims import lab, real, runner
from didact.claims.lab import difference, gate
from didact.evaluate import forgetting
from didact.learn.fit import every
from didact.models.model import Model
from didact.types import Demo, Fit

FORGET, RETAIN, STEPS = 6, 12, 20
LOOK, FORGOTTEN = 2, 0.05  # steps between evaluations; forgotten below this mean probability of an answer's token
ASKED = "Question: What is the capital of {}?\nAnswer: The capital of {} is"
CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Portugal Lisbon, Germany Berlin, Austria Vienna, Poland Warsaw, "
    "Hungary Budapest, Greece Athens, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Japan Tokyo, China Beijing, "
    "Thailand Bangkok, Russia Moscow, Ukraine Kyiv, Sweden Stockholm, Norway Oslo, Finland Helsinki, Denmark "
    "Copenhagen, Ireland Dublin, England London, Belgium Brussels, Romania Bucharest, Bulgaria Sofia, Serbia "
    "Belgrade, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Iraq Baghdad, Iran Tehran, Syria Damascus, "
    "Lebanon Beirut, Cambodia Phnom Penh, Vietnam Hanoi, Nepal Kathmandu, Afghanistan Kabul, Indonesia Jakarta, "
    "Argentina Buenos Aires"
)
ARMS: dict[str, dict[str, Any]] = {"npo": {}, "ga": {"loss": "ga"}, "ga alone": {"loss": "ga", "regulariser": "none"}}
RATES = {"npo": 2e-3, "ga": 1e-3, "ga alone": 3e-5}


@functools.cache
def known_capitals() -> tuple[Demo, ...]:
    """Return the countries whose capital the model generates in full by greedy decoding."""
    pairs = [pair.partition(" ")[::2] for pair in CAPITALS.split(", ")]
    demos = [Demo(prompt=ASKED.format(country, country), completion=capital) for country, capital in pairs]
    extraction = forgetting.answers(real.model(), demos, end=False)["extraction"]
    return tuple(demo for demo, share in zip(demos, extraction, strict=True) if share == 1.0)


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS)) -> runner.Measured:
    """Unlearn one split of the countries with each arm."""
    facts = list(known_capitals())
    random.Random(seed).shuffle(facts)
    forget, retain, neighbours = facts[:FORGET], facts[FORGET : FORGET + RETAIN], facts[FORGET + RETAIN :]
    out = {"start": _measure(real.model(), forget, neighbours) | {"known": float(len(facts))}}
    for name in arms:
        checks = every(LOOK, lambda step: _measure(Model(step.module, real.model().processor), forget, neighbours))
        fit = Fit(lr=RATES[name], lora=8, steps=STEPS, rows=6, seed=seed)
        model = lab.model_of(unlearning.npo(real.model(), forget, retain, **ARMS[name], fit=fit, hooks=[checks]))
        first = next((row for row in checks.rows if row["forget"] <= FORGOTTEN), checks.rows[-1])
        out[name] = _measure(model, forget, neighbours) | {"beside_forgotten": first["beside"]}
    return out


def _measure(model: Model, forget: Sequence[Demo], beside: Sequence[Demo]) -> dict[str, float]:
    """Return the mean per-token probability of forget and neighbour answers, and the share generated in full."""
    forgotten, neighbours = (forgetting.answers(model, part, end=False) for part in (forget, beside))
    out = {"forget": float(forgotten["probability"].mean()), "beside": float(neighbours["probability"].mean())}
    shares = {"forget_exact": forgotten["extraction"], "beside_exact": neighbours["extraction"]}
    out |= {name: float((share == 1.0).mean()) for name, share in shares.items()}
    return out | {"apart": out["beside"] - out["forget"]}


CLAIM = runner.Claim(
    method="npo",
    text=(
        "NPO with a retain loss makes a pre-trained model forget capitals it knew, and leaves neighbouring ones "
        "likelier than gradient ascent with a retain loss does."
    ),
    run=run,
    gates=(
        gate("the model knows capitals", "start.known", at_least=FORGET + RETAIN + 6, unit="countries"),
        gate("ascent forgets", "ga.forget", at_most=0.3, unit="probability"),
    ),
    tests=(
        difference("forgets", "npo.forget", "start.forget", "probability", null=-0.3, less=True),
        difference("neighbours kept better at the end", "npo.beside", "ga.beside", "probability", margin=0.02),
        difference("neighbours kept better when forgotten", "npo.beside_forgotten", "ga.beside_forgotten",
                   "probability", margin=0.02),
        difference("what is left apart", "npo.apart", "ga.apart", "probability", reported=True),
        difference("ascent alone takes neighbours", "ga alone.beside", "start.beside", "probability", null=-0.1,
                   less=True, reported=True),
    ),
)  # fmt: skip
