"""InfAlign's claim where every answer can be enumerated: each decoding procedure has its own best reward.

The method samples, calibrates by a hundred answers of the reference, and trains a policy over 216 answers to each of
six prompts; the policy is then measured exactly, over all answers. Every prompt's reward is scaled and shifted by its
own amount, as reward models do. Twenty-four rounds reach different KLs, so the log-ratio to the reference is scaled to
a KL of 0.5 for all arms. Of Adam at 1e-3 and 3e-3 and SGD at 0.03 to 1, Adam at 3e-3 was best on seeds 1000 to 1002
for identity and exp; the other arms use it untuned. With initial weights of .1 the model distinguishes prompts from the
first round: identity then won .66 on seed 1000, and .53 with .02; more passes over fewer answers gained less. An
earlier form trained policies by the exact gradient, which no user runs. On seed 1000 win rates were as good with
calibration over all prompts as by prompt, so that difference is tested on C itself.
The analytic table is recomputed too. Reward hacking and human judgement are not tested.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from didact import alignment
from didact.claims import lab, runner
from didact.claims.alignment import enumerated, infalign_example
from didact.claims.alignment import infalign_sabotages as broken
from didact.claims.lab import bound, difference, exact, gate
from didact.evaluate import win_rates
from didact.infer.generate import SamplingConfig
from didact.models.model import Model
from didact.objectives import rewards
from didact.types import Fit, Text
from didact.worlds import outcomes

WORLD = outcomes.Outcomes(letters=6, length=3)
PROMPTS = "ABCDEF"
KL = 0.5  # nats an answer
TAUGHT = {"smoke": 20, "quick": 80, "full": 200}  # steps to train the reference
ROUNDS = {"smoke": 1, "quick": 24, "full": 48}
RATE = 3e-3
ARMS: dict[str, dict[str, Any]] = {
    "raw": {"transform": "identity", "calibration": "none", "beta": 0.3},
    "identity": {"transform": "identity", "beta": 0.3},
    "exp(10)": {"transform": "exp", "t": 10.0, "beta": 0.15},
    "exp(-10)": {"transform": "exp", "t": -10.0, "beta": 0.15},
}
TABLE: dict[str, tuple[tuple[Any, float], tuple[float, ...]]] = {  # the card's, N = 4, KL 0.5: W, best, worst of four
    "identity": (("identity", 0.0), (0.774, 0.800, 0.886)), "exp(10)": (("exp", 10.0), (0.712, 0.872, 0.676)),
    "exp(-10)": (("exp", -10.0), (0.736, 0.686, 0.948)), "log": (("log", 0.0), (0.768, 0.768, 0.927)),
}  # fmt: skip
DRAWN: dict[str, Any] = {
    "decoding": "bon:4", "samples": 64, "k": 100,
    "sampling": SamplingConfig(max_new_tokens=WORLD.length, temperature=1.0),
}  # fmt: skip
DECODED = {"w": "sample", "bon": "bon:4", "won": "won:4"}

problem = infalign_example.problem


def run(
    seed: int, tier: runner.Tier, broken: tuple[str, ...] = (), kept: tuple[str, ...] = tuple(ARMS)
) -> runner.Measured:
    """The reference and the method's policy for each reward: cached for `kept`, trained anew for `broken`."""
    ref, raw = _logp(_reference(seed, tier)), WORLD.stretched(seed, len(PROMPTS))
    c = rewards.calibrate(raw, raw, ref.exp().numpy())
    out = {"reference": _measures(ref, ref, raw) | {"c": float((ref.exp().numpy() * c).sum(1).mean())}}
    out["reference"]["each"] = float(abs(rewards.calibrated(raw, raw, "prompt").mean(1) - 0.5).max())
    out["table"] = {"off": _table_error()}
    return out | {name: _cached(seed, tier, name) for name in kept} | {name: _arm(seed, tier, name) for name in broken}


def _rescaled(logp: Tensor, ref: Tensor) -> Tensor:
    """Scale the log-ratio to the reference to a KL of `KL`: for `ref exp(R / beta)` this only changes beta."""
    return outcomes.matched(lambda strength: (ref + strength * (logp - ref)).log_softmax(-1), ref, KL)[1]


@torch.no_grad()
def _logp(model: Model) -> Tensor:
    return enumerated.logp(model, WORLD, PROMPTS)[0]


def _measures(logp: Tensor, ref: Tensor, reward: Any) -> dict[str, float]:
    """Exact win rates over the reference, by decoding procedure, and the KL; means over prompts."""
    p, q = logp.exp().double().numpy(), ref.exp().double().numpy()
    out = {}
    for name, decoding in DECODED.items():
        to = rewards.procedure(decoding)
        out[name] = lab.mean(win_rates.win_rate(a, r, b, r, to) for a, b, r in zip(p, q, reward, strict=True))
    return out | {"kl": float(outcomes.kl(logp, ref).mean())}


def _arm(seed: int, tier: runner.Tier, name: str) -> dict[str, float]:
    """Train the reference by the method; a text that is no answer has the lowest reward."""
    raw, start = WORLD.stretched(seed, len(PROMPTS)), _reference(seed, tier)
    by_pair = {(f"{x} ", WORLD.text(y)): float(r) for x, row in zip(PROMPTS, raw, strict=True)
               for y, r in zip(WORLD.answers, row, strict=True)}  # fmt: skip
    lowest = float(raw.min())
    result = alignment.infalign(
        start, [Text(text=f"{x} ") for x in PROMPTS], **DRAWN, **ARMS[name], rounds=ROUNDS[tier], kl=KL,
        reward=lambda prompts, texts: [by_pair.get(pair, lowest) for pair in zip(prompts, texts, strict=True)],
        fit=Fit(lr=RATE, rows=len(PROMPTS), schedule="constant", seed=seed),
    )  # fmt: skip
    ref, logp = _logp(start), _logp(lab.model_of(result))
    return _measures(_rescaled(logp, ref), ref, raw) | {"trained_kl": float(outcomes.kl(logp, ref).mean())}


_cached = lab.shared(_arm)


@lab.shared
def _reference(seed: int, tier: runner.Tier) -> Model:
    """Trained by exact maximum likelihood on a random Markov source per prompt; it also learns to give letters only."""
    model = lab.blank("llama", d=64, layers=2, heads=4, context=16, seed=seed, initializer_range=0.1)
    source = torch.stack([WORLD.logp(WORLD.source(100 * seed + x, 0.5)) for x in range(len(PROMPTS))])
    enumerated.likelihood(model, WORLD, PROMPTS, source, TAUGHT[tier], RATE)
    return model


def _table_error() -> float:
    """Largest difference of the analytic win rates, for continuous C, from the card's."""
    errors = []
    for phi, rates in TABLE.values():
        best = rewards.at_kl(rewards.transform(rewards.grid(), *phi, floor=1e-9), KL)[1]
        errors += [abs(best.win_rate(rewards.procedure(d)) - w) for d, w in zip(DECODED.values(), rates, strict=True)]
    return max(errors)


WINS, REWARDS = "win rate", "didact.objectives.rewards"
BEST = "best of four, from the transform made for it"
PROMPT = "so is the mean over each prompt's answers"
LEARNT = "it wins best of four"
EVEN = "the reference is even with itself, decoded alike"
HALF = "the reference's mean calibrated reward is a half"

CLAIM = runner.Claim(
    method="infalign",
    text=(
        "At the same distance from the reference, a calibrated reward transformed for the way answers are decoded "
        "wins more often when they are decoded so, and calibration alone wins more often than the raw reward."
    ),
    run=run,
    gates=(gate("the policies moved", "identity.trained_kl", at_least=0.1, unit="nats"),),
    tests=(
        difference(BEST, "exp(10).bon", "identity.bon", WINS),
        difference("worst of four, from the transform made for it", "exp(-10).won", "identity.won", WINS),
        difference("calibration helps where prompts are stretched", "identity.w", "raw.w", WINS),
        exact(HALF, "reference.c", 0.5, 1e-6, "share"),
        exact(PROMPT, "reference.each", 0.0, 1e-6, "share, the prompt furthest off"),
        exact(EVEN, "reference.bon", 0.5, 1e-6, WINS),
        exact("the analytic table", "table.off", 0.0, 0.003, "win rate, the largest error"),
        bound(LEARNT, "exp(10).bon", 0.55, WINS),
        difference("what best of four costs in plain sampling", "identity.w", "exp(10).w", WINS, reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign of t swapped", BEST, "exp(10).bon", {f"{REWARDS}:transform": broken.swapped},
                        {"broken": ("exp(10)",)}),
        runner.Sabotage("ties not halved", HALF, "reference.c", {f"{REWARDS}:calibrate": broken.no_ties}),
        runner.Sabotage("calibrated over all prompts", PROMPT, "reference.each",
                        {f"{REWARDS}:calibrated": broken.over_all}),
        runner.Sabotage("only one side decoded", EVEN, "reference.bon",
                        {"didact.evaluate.win_rates:win_rate": broken.one_sided}),
        runner.Sabotage("advantages turned", LEARNT, "exp(10).bon",
                        {"didact.objectives.policy:leave_one_out": broken.turned}, {"broken": ("exp(10)",)}),
    ),
)  # fmt: skip
