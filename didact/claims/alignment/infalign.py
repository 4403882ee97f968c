"""InfAlign's claim where every answer can be enumerated: each way to decode has its own best reward.

A policy over 216 answers to each of six prompts is trained by the exact policy gradient, so nothing is sampled. Every
prompt's reward is stretched and shifted by its own amount, as reward models do. All rewards have the same steps and the
same rate (the only one that was tried, on seed 1000), and beta is steered until the mean KL is about 0.5; the rest of
the way is a tilt. The analytic table is recomputed beside it. Reward hacking and people's judgement cannot be tested.

That training comes near the distance was a test at first; one of the twenty policies of the first run had come to 0.72
nats. It says nothing of the paper, so it is a gate now; nothing else was changed after that run.

Two more arms were added later: the method itself, sampling and calibrating by a hundred answers of a reference of its
own, also taught to say letters only. Of Adam at 1e-3 and 3e-3 and plain gradients at 0.03 to 1, 3e-3 was best on seeds
1000 to 1002 for both (best of four: .60 .68 .63 by identity, .65 .75 .75 by exp). Twenty-four rounds come half as far
as the exact gradient, so how the two compare gates nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
STEPS = {"smoke": (20, 20), "quick": (80, 100), "full": (200, 400)}  # to teach the reference; of every policy
RATE = 3e-3
TRANSFORMS: dict[str, tuple[Any, float]] = {
    "identity": ("identity", 0.0), "exp(10)": ("exp", 10.0), "exp(-10)": ("exp", -10.0), "log": ("log", 0.0),
}  # fmt: skip
TABLE = {  # N = 4, KL 0.5, of the paper's card: W, best and worst of four
    "identity": (0.774, 0.800, 0.886), "exp(10)": (0.712, 0.872, 0.676), "exp(-10)": (0.736, 0.686, 0.948),
    "log": (0.768, 0.768, 0.927),
}  # fmt: skip
SAMPLED: dict[str, tuple[Any, float]] = {"sampled identity": ("identity", 0.3), "sampled exp(10)": ("exp", 0.15)}
ARMS = ("raw", "identity", "exp(10)", "exp(-10)", *SAMPLED)
ROUNDS = {"smoke": 1, "quick": 24, "full": 48}
DRAWN: dict[str, Any] = {
    "decoding": "bon:4", "samples": 64, "k": 100,
    "sampling": SamplingConfig(max_new_tokens=WORLD.length, temperature=1.0),
}  # fmt: skip
DECODED = {"w": "sample", "bon": "bon:4", "won": "won:4"}

problem = infalign_example.problem


def run(seed: int, tier: runner.Tier, arms: tuple[str, ...] = ARMS) -> runner.Measured:
    """The reference and a policy for each reward, on one seed."""
    ref, raw = _logp(_reference(seed, tier)), WORLD.stretched(seed, len(PROMPTS))
    c = rewards.calibrate(raw, raw, ref.exp().numpy())
    out = {"reference": _measures(ref, ref, raw) | {"c": float((ref.exp().numpy() * c).sum(1).mean())}}
    out["table"] = {"off": _table_off()}
    for name in arms:
        logp, start = _sampled(seed, tier, name, raw) if name in SAMPLED else (_exactly(seed, tier, name, raw, c), ref)
        out[name] = _measures(_moved(logp, start), start, raw) | {"trained_kl": float(outcomes.kl(logp, start).mean())}
    off = [abs(out[name]["trained_kl"] - KL) for name in arms if name not in SAMPLED]
    out["training"] = {"off": max(off, default=0.0)}
    return out


def _moved(logp: Tensor, ref: Tensor) -> Tensor:
    """The rest of the way to the distance: of an optimum `ref exp(R / beta)` this is another beta's."""
    return outcomes.matched(lambda strength: (ref + strength * (logp - ref)).log_softmax(-1), ref, KL)[1]


@torch.no_grad()
def _logp(model: Model) -> Tensor:
    return enumerated.logp(model, WORLD, PROMPTS)[0]


def _measures(logp: Tensor, ref: Tensor, reward: Any) -> dict[str, float]:
    """Win rates over the reference, exact, and the KL; means over prompts."""
    p, q = logp.exp().double().numpy(), ref.exp().double().numpy()
    out = {}
    for name, decoding in DECODED.items():
        to = rewards.procedure(decoding)
        out[name] = lab.mean(win_rates.win_rate(a, r, b, r, to) for a, b, r in zip(p, q, reward, strict=True))
    return out | {"kl": float(outcomes.kl(logp, ref).mean())}


def _sampled(seed: int, tier: runner.Tier, name: str, raw: Any) -> tuple[Tensor, Tensor]:
    """What the method makes of a reference and that, log-probs `(X, n)`; what is no answer has the least reward."""
    known = {(f"{x} ", WORLD.text(y)): float(r) for x, row in zip(PROMPTS, raw, strict=True)
             for y, r in zip(WORLD.answers, row, strict=True)}  # fmt: skip
    least, start, (transform, beta) = float(raw.min()), _reference(seed, tier, speak=True), SAMPLED[name]
    result = alignment.infalign(
        start, [Text(text=f"{x} ") for x in PROMPTS], transform=transform, beta=beta, **DRAWN, rounds=ROUNDS[tier],
        kl=KL, reward=lambda prompts, texts: [known.get(pair, least) for pair in zip(prompts, texts, strict=True)],
        fit=Fit(lr=RATE, rows=len(PROMPTS), schedule="constant", seed=seed),
    )  # fmt: skip
    return _logp(lab.model_of(result)), _logp(start)


def _exactly(seed: int, tier: runner.Tier, name: str, raw: Any, c: Any) -> Tensor:
    """The policy of a reward that is not sampled; beta begins where the analytic table has the distance."""
    if name == "raw":
        return _aligned(seed, tier, np.asarray(raw, float).tobytes(), float(raw.std()))
    on_grid, phi = (rewards.transform(u, *TRANSFORMS[name], floor=1e-3) for u in (rewards.grid(), c))
    beta = rewards.at_kl(on_grid, KL)[0] * float(np.abs(on_grid).max())
    return _aligned(seed, tier, np.asarray(phi, float).tobytes(), beta)


@lab.shared
def _aligned(seed: int, tier: runner.Tier, phi: bytes, beta: float) -> Tensor:
    """Kept by Phi itself: a sabotage that leaves an arm's Phi as it is leaves its policy too."""
    reward = torch.from_numpy(np.frombuffer(phi).copy()).view(len(PROMPTS), -1)
    start, steps = _reference(seed, tier), STEPS[tier][1]
    return enumerated.policy_gradient(start, WORLD, PROMPTS, reward, beta, KL, steps, RATE)


@lab.shared
def _reference(seed: int, tier: runner.Tier, speak: bool = False) -> Model:
    """Maximum likelihood of a random Markov source for each prompt, exactly."""
    model = lab.blank("llama", d=64, layers=2, heads=4, context=16, seed=seed)
    source = torch.stack([WORLD.logp(WORLD.source(100 * seed + x, 0.5)) for x in range(len(PROMPTS))])
    enumerated.likelihood(model, WORLD, PROMPTS, source, STEPS[tier][0], RATE, speak)
    return model


def _table_off() -> float:
    """How far the analytic win rates, where C is continuous, are from the card's, at most."""
    off = []
    for name, wanted in TABLE.items():
        found = rewards.at_kl(rewards.transform(rewards.grid(), *TRANSFORMS[name], floor=1e-9), KL)[1]
        off += [abs(found.win_rate(rewards.procedure(d)) - w) for d, w in zip(DECODED.values(), wanted, strict=True)]
    return max(off)


WINS, REWARDS = "win rate", "didact.objectives.rewards"
BEST = "best of four, from the transform made for it"
STRETCHED = "calibration helps where prompts are stretched"
LEARNT = "the method, which samples, wins best of four"
EVEN = "the reference is even with itself, decoded alike"
HALF = "the reference's mean calibrated reward is a half"

CLAIM = runner.Claim(
    method="infalign",
    text=(
        "At the same distance from the reference, a calibrated reward transformed for the way answers are decoded "
        "wins more often when they are decoded so, and calibration alone wins more often than the raw reward."
    ),
    run=run,
    gates=(gate("policies were trained near that distance", "training.off", at_most=0.15, unit="nats"),),
    tests=(
        difference(BEST, "exp(10).bon", "identity.bon", WINS),
        difference("worst of four, from the transform made for it", "exp(-10).won", "identity.won", WINS),
        difference(STRETCHED, "identity.w", "raw.w", WINS),
        exact(HALF, "reference.c", 0.5, 1e-6, "share"),
        exact(EVEN, "reference.bon", 0.5, 1e-6, WINS),
        exact("the analytic table", "table.off", 0.0, 0.003, "win rate, the largest error"),
        bound(LEARNT, "sampled exp(10).bon", 0.55, WINS),
        difference("sampled too, by the transform made for it", "sampled exp(10).bon", "sampled identity.bon", WINS,
                   reported=True),
        difference("what best of four costs in plain sampling", "identity.w", "exp(10).w", WINS, reported=True),
    ),
    sabotages=(
        runner.Sabotage("sign of t swapped", BEST, "exp(10).bon", {f"{REWARDS}:transform": broken.swapped},
                        {"arms": ("identity", "exp(10)")}),
        runner.Sabotage("ties not halved", HALF, "reference.c", {f"{REWARDS}:calibrate": broken.no_ties}, {"arms": ()}),
        runner.Sabotage("calibrated over all prompts", STRETCHED, "identity.w",
                        {f"{REWARDS}:calibrate": broken.over_all}, {"arms": ("raw", "identity")}),
        runner.Sabotage("only one side decoded", EVEN, "reference.bon",
                        {"didact.evaluate.win_rates:win_rate": broken.one_sided}, {"arms": ()}),
        runner.Sabotage("advantages turned", LEARNT, "sampled exp(10).bon",
                        {"didact.objectives.policy:leave_one_out": broken.turned}, {"arms": ("sampled exp(10)",)}),
    ),
)  # fmt: skip
