"""InfAlign's claim where every answer can be enumerated: each way to decode has its own best reward.

A policy over 216 answers to each of six prompts is trained by the exact policy gradient, so nothing is sampled. Every
prompt's reward is stretched and shifted by its own amount, as reward models do. All rewards have the same steps and the
same rate (the only one that was tried, on seed 1000), and beta is steered until the mean KL is about 0.5; the rest of
the way is a tilt. The analytic table is recomputed beside it. Reward hacking and people's judgement cannot be tested.

That training comes near the distance was a test at first; one of the twenty policies of the first run had come to 0.72
nats. It says nothing of the paper, so it is a gate now; nothing else was changed after that run.

Two more arms were added later: the method itself, which samples its answers and calibrates by a hundred of the
reference's. Of Adam at 1e-3 and 3e-3 and plain gradients at 0.03 to 1, 3e-3 was best on seeds 1000 to 1002 for both
(best of four: .60 .68 .63 by identity, .65 .75 .75 by exp). Their reference is one of their own, also taught to say
letters and nothing else. Twenty-four rounds come half as far as the exact gradient, so how the two compare gates
nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact import alignment
from didact.claims import runner, verdict
from didact.claims.alignment import infalign_example
from didact.data import encode
from didact.evaluate import win_rates
from didact.infer.generate import SamplingConfig
from didact.learn import episodes
from didact.models import build
from didact.models.model import Model, copy_of
from didact.objectives import policy, rewards
from didact.types import Fit, Text
from didact.worlds import outcomes

WORLD = outcomes.Outcomes(letters=6, length=3)
PROMPTS = "ABCDEF"
KL = 0.5  # nats an answer
STEPS = {"smoke": (20, 20), "quick": (80, 100), "full": (200, 400)}  # to teach the reference; of every policy
RATE = 3e-3
STEER = 0.15  # how fast log beta follows the KL
TRANSFORMS: dict[str, tuple[rewards.Transform, float]] = {
    "identity": ("identity", 0.0), "exp(10)": ("exp", 10.0), "exp(-10)": ("exp", -10.0)
}  # fmt: skip
SAMPLED: dict[str, dict[str, Any]] = {
    "sampled identity": {"transform": "identity", "beta": 0.3}, "sampled exp(10)": {"transform": "exp", "beta": 0.15}
}  # fmt: skip
ROUNDS = {"smoke": 1, "quick": 24, "full": 48}
DRAWN: dict[str, Any] = {
    "decoding": "bon:4", "samples": 64, "k": 100,
    "sampling": SamplingConfig(max_new_tokens=WORLD.length, temperature=1.0),
}  # fmt: skip
ARMS = ("raw", *TRANSFORMS, *SAMPLED)
TABLE = {  # N = 4, KL 0.5, of the paper's card: W, best and worst of four
    "identity": (0.774, 0.800, 0.886), "log": (0.768, 0.768, 0.927), "exp(10)": (0.712, 0.872, 0.676),
    "exp(-10)": (0.736, 0.686, 0.948),
}  # fmt: skip
DECODED = {"w": "sample", "bon": "bon:4", "won": "won:4"}


def problem(seed: int) -> Any:
    """What `didact run infalign` teaches when given no model and data."""
    return infalign_example.problem(seed)


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, arms: tuple[str, ...] = ARMS) -> dict[str, dict[str, float]]:
    """The reference and a policy for each reward, on one seed."""
    model = _reference(seed, tier)
    with torch.no_grad():
        ref = WORLD.logp(_tables(model))
    draw = np.random.default_rng([seed, 71])
    plain = np.stack([WORLD.reward(100 * seed + x).numpy() for x in range(len(PROMPTS))])
    stretch, shift = np.exp(draw.normal(0, 1, len(PROMPTS))), draw.normal(0, 3, len(PROMPTS))
    raw = stretch[:, None] * plain**3 + shift[:, None]
    c = rewards.calibrate(raw, raw, ref.exp().numpy())
    out = {"reference": _measures(ref, ref, raw) | {"c": float((ref.exp().numpy() * c).sum(1).mean())}}
    out["table"] = {"off": _table_off()}
    for name in arms:
        if name in SAMPLED:
            logp, start = _sampled(seed, tier, name, raw)
            out[name] = _measures(_moved_to(KL, logp, start), start, raw) | {"trained_kl": _kl(logp, start)}
            continue
        if name == "raw":
            phi, beta = raw, float(raw.std())
        else:
            kind, t = TRANSFORMS[name]
            phi = rewards.transform(c, kind, t, floor=1e-3)
            on_grid = rewards.transform(rewards.grid(), kind, t, floor=1e-3)
            beta = rewards.at_kl(on_grid, KL)[0] * float(np.abs(on_grid).max())
        logp = _aligned(seed, tier, np.asarray(phi, float).tobytes(), beta)
        out[name] = _measures(_moved_to(KL, logp, ref), ref, raw) | {"trained_kl": _kl(logp, ref)}
    exact = [out[name]["trained_kl"] for name in arms if name not in SAMPLED]
    out["training"] = {"off": max((abs(kl - KL) for kl in exact), default=0.0)}
    return out


def _moved_to(target: float, logp: Tensor, ref: Tensor) -> Tensor:
    """The rest of the way to a KL: of an optimum `ref exp(R / beta)` this is another beta's."""
    return outcomes.matched(lambda strength: (ref + strength * (logp - ref)).log_softmax(-1), ref, target)[1]


def _kl(logp: Tensor, ref: Tensor) -> float:
    return float(outcomes.kl(logp, ref).mean())


def _measures(logp: Tensor, ref: Tensor, reward: Any) -> dict[str, float]:
    """Win rates over the reference, exact, and the KL; means over prompts."""
    p, q = logp.exp().double().numpy(), ref.exp().double().numpy()
    told = {}
    for name, decoding in DECODED.items():
        to = rewards.procedure(decoding)
        told[name] = float(np.mean([win_rates.win_rate(a, r, b, r, to) for a, b, r in zip(p, q, reward, strict=True)]))
    return told | {"kl": _kl(logp, ref)}


def _sampled(seed: int, tier: runner.Tier, name: str, raw: Any) -> list[Tensor]:
    """What the method makes of a reference and that, log-probs `(X, n)`; what is no answer has the least reward."""
    known = {(f"{x} ", WORLD.text(y)): float(r) for x, row in zip(PROMPTS, raw, strict=True)
             for y, r in zip(WORLD.answers, row, strict=True)}  # fmt: skip
    least, start = float(raw.min()), _reference(seed, tier, speaks=True)
    result = alignment.infalign(
        start, [Text(text=f"{x} ") for x in PROMPTS], **SAMPLED[name], **DRAWN, rounds=ROUNDS[tier],
        kl=KL, reward=lambda prompts, made: [known.get(pair, least) for pair in zip(prompts, made, strict=True)],
        fit=Fit(lr=RATE, rows=len(PROMPTS), schedule="constant", seed=seed),
    )  # fmt: skip
    taught = result.models["model"]
    assert isinstance(taught, Model)
    with torch.no_grad():
        return [WORLD.logp(_tables(model)) for model in (taught, start)]


@functools.lru_cache(maxsize=256)
def _aligned(seed: int, tier: runner.Tier, phi: bytes, beta: float) -> Tensor:
    """`max E[Phi] - beta KL` by its exact gradient; beta follows the KL to its target. Log-probs `(X, n)`.

    Kept by Phi itself: a sabotage that leaves an arm's Phi as it is leaves its policy too.
    """
    model, steps = copy_of(_reference(seed, tier)), STEPS[tier][1]
    reward = torch.from_numpy(np.frombuffer(phi).copy()).view(len(PROMPTS), -1)
    with torch.no_grad():
        ref = WORLD.logp(_tables(model))
    optimizer, log_beta = torch.optim.Adam(model.module.parameters(), lr=RATE), np.log(beta)
    scale = float(reward.std())  # Adam does not see it, its epsilon does
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        logp = WORLD.logp(_tables(model))
        kl = outcomes.kl(logp, ref).mean()
        gained = (logp.exp() * reward).sum(-1).mean()
        optimizer.zero_grad()
        ((float(np.exp(log_beta)) * kl - gained) / scale).backward()
        optimizer.step()
        log_beta += STEER * float(np.clip(np.log(max(kl.item(), 1e-3) / KL), -1, 1))
    with torch.no_grad():
        return WORLD.logp(_tables(model))


@functools.lru_cache(maxsize=64)
def _reference(seed: int, tier: runner.Tier, speaks: bool = False) -> Model:
    """Maximum likelihood of a random Markov source for each prompt, exactly; shared by a seed's arms and sabotages.

    One that `speaks` has learnt, beside which letter comes next, that one does.
    """
    tokenizer = build.train_tokenizer([], 259)
    model = build.build("llama", tokenizer, d=64, layers=2, heads=4, context=16, seed=seed)
    source = torch.stack([WORLD.logp(WORLD.source(100 * seed + x, 0.5)) for x in range(len(PROMPTS))])
    optimizer = torch.optim.Adam(model.module.parameters(), lr=RATE)
    for _ in range(STEPS[tier][0]):
        states = _states(model)
        optimizer.zero_grad()
        beside = _elsewhere(model, states) if speaks else 0.0
        (outcomes.kl(source, WORLD.logp(_tables(model, states))).mean() + beside).backward()
        optimizer.step()
    return model


ENDS = sorted({y[:-1] for y in WORLD.answers})  # answers but for their last letter: all prefixes are on the way


def _states(model: Model) -> Tensor:
    """What the head reads before every letter, `(X, ends, length, d)`."""
    heads, letters = _ids(model)
    ids = torch.tensor([[*head, *(letters[c] for c in end)] for head in heads for end in ENDS])
    module: Any = model.module
    hidden: Tensor = module.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[:, -WORLD.length :].view(len(heads), len(ENDS), WORLD.length, -1)


def _tables(model: Model, states: Tensor | None = None) -> Tensor:
    """Logits of every letter after every prefix of every prompt, `(X, P, V)`: what lies on other tokens is left out."""
    module: Any = model.module
    states = _states(model) if states is None else states
    logits = (states @ module.get_output_embeddings().weight[_ids(model)[1]].T).double()
    number = {p: i for i, p in enumerate(WORLD.prefixes)}
    where = [number[end[:t]] for end in ENDS for t in range(WORLD.length)]
    return logits.flatten(1, 2)[:, [where.index(i) for i in range(len(WORLD.prefixes))]]


def _elsewhere(model: Model, states: Tensor) -> Tensor:
    """What saying anything but letters costs, `-log P(a letter)`, mean in nats."""
    module: Any = model.module
    logits = states @ module.get_output_embeddings().weight.T
    return (logits.logsumexp(-1) - logits[..., _ids(model)[1]].logsumexp(-1)).mean()


@functools.lru_cache(maxsize=4)
def _ids_of(tokenizer: Any) -> tuple[list[list[int]], list[int]]:
    rows = [
        encode.row(tokenizer, f"{x} ", WORLD.text(tuple(range(WORLD.letters))), "causal", 16, end=False)
        for x in PROMPTS
    ]
    return [list(r.prompt) for r in rows], list(rows[0].completion)


def _ids(model: Model) -> tuple[list[list[int]], list[int]]:
    """The prompts' tokens and the letters'."""
    return _ids_of(model.tokenizer)


# --- where C is continuous -------------------------------------------------------------------


def _table_off() -> float:
    """How far the analytic win rates are from the card's, at most."""
    worst = 0.0
    for name, wanted in TABLE.items():
        kind, t = {**TRANSFORMS, "log": ("log", 0.0)}[name]
        found = rewards.at_kl(rewards.transform(rewards.grid(), kind, t, floor=1e-9), KL)[1]
        rates = [found.win_rate(rewards.procedure(d)) for d in DECODED.values()]
        worst = max(worst, *(abs(a - b) for a, b in zip(rates, wanted, strict=True)))
    return worst


# --- the claim -------------------------------------------------------------------------------

_transform, _calibrate, _win_rate = rewards.transform, rewards.calibrate, win_rates.win_rate
_leave_one_out = policy.leave_one_out


def _swapped(u: Any, name: Any, t: float = 10.0, floor: float = 0.0) -> Any:
    return _transform(u, name, -t, floor)


def _no_ties(reward: Any, reference: Any, weight: Any = None) -> Any:
    worse = np.asarray(reference)[..., None, :] < np.asarray(reward)[..., :, None]
    return (worse * np.asarray(weight)[..., None, :]).sum(-1)


def _global(reward: Any, reference: Any, weight: Any = None) -> Any:
    flat = _calibrate(np.ravel(reward), np.ravel(reference), np.ravel(weight) / len(weight))
    return flat.reshape(np.shape(reward))


def _one_sided(p: Any, r: Any, q: Any, z: Any, to: Any) -> float:
    everywhere = _win_rate(win_rates.decoded(p, r, to), r, q, z, rewards.procedure("sample"))
    return float(everywhere)


def _turned(reward: Any) -> Any:
    return -_leave_one_out(reward)


def _more(name: str, a: str, b: str, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="difference", a=a, b=b, unit="win rate", **more)


def _exact(name: str, a: str, null: float, margin: float, unit: str) -> verdict.Test:
    return verdict.Test(name=name, kind="exact", a=a, null=null, margin=margin, unit=unit)


def _breaks(
    name: str, test: str, target: str, by: Callable[..., Any], arms: tuple[str, ...], metric: str
) -> runner.Sabotage:
    return runner.Sabotage(name=name, breaks=test, patch={target: by}, options={"arms": arms}, metric=metric)


_BEST = "best of four, from the transform made for it"
_STRETCHED = "calibration helps where prompts are stretched"
_LEARNT = "the method, which samples, wins best of four"
_EVEN = "the reference is even with itself, decoded alike"
_HALF = "the reference's mean calibrated reward is a half"

CLAIM = runner.Claim(
    method="infalign",
    text=(
        "At the same distance from the reference, a calibrated reward transformed for the way answers are decoded "
        "wins more often when they are decoded so, and calibration alone wins more often than the raw reward."
    ),
    run=run,
    gates=(verdict.gate("policies were trained near that distance", "training.off", at_most=0.15, unit="nats"),),
    tests=(
        _more(_BEST, "exp(10).bon", "identity.bon"),
        _more("worst of four, from the transform made for it", "exp(-10).won", "identity.won"),
        _more(_STRETCHED, "identity.w", "raw.w"),
        _exact(_HALF, "reference.c", 0.5, 1e-6, "share"),
        _exact(_EVEN, "reference.bon", 0.5, 1e-6, "win rate"),
        _exact("the analytic table", "table.off", 0.0, 0.003, "win rate, the largest error"),
        verdict.Test(name=_LEARNT, kind="bound", a="sampled exp(10).bon", null=0.55, unit="win rate"),
        _more("sampled too, by the transform made for it", "sampled exp(10).bon", "sampled identity.bon", gates="none"),
        _more("what best of four costs in plain sampling", "identity.w", "exp(10).w", gates="none"),
    ),
    sabotages=(
        _breaks("sign of t swapped", _BEST, "didact.objectives.rewards:transform", _swapped, ("identity", "exp(10)"),
                "exp(10).bon"),
        _breaks("ties not halved", _HALF, "didact.objectives.rewards:calibrate", _no_ties, (), "reference.c"),
        _breaks("calibrated over all prompts", _STRETCHED, "didact.objectives.rewards:calibrate", _global,
                ("raw", "identity"), "identity.w"),
        _breaks("only one side decoded", _EVEN, "didact.evaluate.win_rates:win_rate", _one_sided, (), "reference.bon"),
        _breaks("advantages turned", _LEARNT, "didact.objectives.policy:leave_one_out", _turned, ("sampled exp(10)",),
                "sampled exp(10).bon"),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
