"""GenARM's claim where every answer can be enumerated: more reward at the same distance from the base model.

Answers are four letters of five after one prompt, 625 in all, so expected reward and KL are sums. Pairs are drawn from
the base and labelled by the true reward. Every way to guide is set to the same KL by bisecting its strength; all reward
models have the same pairs and steps, each the better of two rates on seed 1000. On that seed the design was changed
twice: models of one layer, in which a reward of whole answers cannot see pairs of letters, have two now; and the
small model is 32 wide, for at 16 it kept .53 of the large one's gain. Outside this world stays how good a reward model
of real preferences is, and people's judgement.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from didact import alignment, baselines
from didact.claims import runner, verdict
from didact.claims.alignment import genarm_example
from didact.data import encode
from didact.infer import guide
from didact.learn import episodes
from didact.models import build, logit_ensemble
from didact.models.model import Model, copy_of
from didact.objectives import preference
from didact.types import Demo, Fit, Preference
from didact.worlds import outcomes

WORLD = outcomes.Outcomes(letters=5, length=4)
PROMPT = "Q "
BUDGETS = {"03": 0.3, "07": 0.7}  # KL to the base, nats an answer
ALPHAS = (0.5, 1.0, 2.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the first of two rewards
STEPS = {"smoke": (30, 10), "quick": (150, 160), "full": (400, 500)}  # to teach the base; of every reward model
PAIRS = {"smoke": 200, "quick": 3000, "full": 6000}
RATES = {"arm": 1.5e-3, "trajectory": 1.5e-3, "dpo": 4e-3, "weak": 4e-3}  # of 1.5e-3 and 4e-3
SURE = 2.0  # logit of the label, a unit of reward
PARTS = ("trajectory", "dpo", "weak", "two")


def problem(seed: int) -> Any:
    """What `didact run genarm` teaches when given no model and data."""
    return genarm_example.problem(seed)


@episodes.one_thread()
def run(
    seed: int, tier: runner.Tier, parts: tuple[str, ...] = PARTS, right: float = 1.0
) -> dict[str, dict[str, float]]:
    """Every way to guide on one seed; `right` is the share of the ARM's pairs that keep their label."""
    base, reward = _base(seed, tier, 64), WORLD.reward(seed)
    ref, pairs = _table(base), _pairs(base, reward, seed, tier, right)
    arm_model = _arm_of(seed, tier, right)
    arm, start = _table(arm_model), WORLD.logp(ref)

    def guided(by: Tensor) -> Callable[[float], Tensor]:
        return lambda alpha: WORLD.logp(logit_ensemble.combine(ref, [(by, alpha)]))

    ways = {
        "arm": guided(arm),
        "untrained": guided(ref),
        "difference": guided(arm.log_softmax(-1) - ref.log_softmax(-1)),
        "optimum": lambda w: outcomes.tilted(start, reward, 1 / max(w, 1e-9)),
    }
    if "trajectory" in parts:
        scores, whole = _trajectory(seed, tier)
        ways["trajectory"] = lambda w: WORLD.logp(ref.log_softmax(-1) + w * scores)
        ways["whole"] = lambda w: (start + w * whole).log_softmax(-1)
    if "dpo" in parts:
        fit = _fit(seed, tier, RATES["dpo"])
        policy = baselines.dpo(base, pairs, beta=1.0, fit=fit).models["model"]
        assert isinstance(policy, Model)
        moved = WORLD.logp(_table(policy)) - start
        ways["dpo"] = lambda w: (start + w * moved).log_softmax(-1)
    if "weak" in parts:
        ways["weak"] = guided(_table(_arm(_base(seed, tier, 32), pairs, seed, tier, RATES["weak"])))
    out = {name: _at_budgets(policy, start, reward) for name, policy in ways.items()}
    for name in ("weak", "arm"):
        for other in {"weak": ("arm",), "arm": ("dpo",)}[name] if name in out else ():
            if other in out:
                out[name]["kept"] = _gain(out[name], start, reward) / _gain(out[other], start, reward)
    at = [ways["arm"](a) for a in ALPHAS]
    kls, means = [float(outcomes.kl(p, start)) for p in at], [float(p.exp() @ reward) for p in at]
    out["arm"] |= {"rise": min(np.diff(means)), "rise_kl": min(np.diff(kls)), "kl_1": kls[1]}
    out["arm"]["decoder"] = _decoder_off(base, arm_model, ref, arm)
    out["base"] = {"reward": float(start.exp() @ reward), "spread": _spread(start, reward)}
    if "two" in parts:
        out["two"] = _two(base, ref, arm, reward, seed, tier)
    return out


def _at_budgets(policy: Callable[[float], Tensor], start: Tensor, reward: Tensor) -> dict[str, float]:
    """Expected reward at every budget; and the KL reached, which is short where no strength reaches it."""
    told: dict[str, float] = {}
    for name, target in BUDGETS.items():
        strength, logp = outcomes.matched(policy, start, target)
        told |= {f"reward_{name}": float(logp.exp() @ reward), f"kl_{name}": float(outcomes.kl(logp, start)),
                 f"strength_{name}": strength}  # fmt: skip
    return told


def _gain(told: dict[str, float], start: Tensor, reward: Tensor) -> float:
    return told["reward_07"] - float(start.exp() @ reward)


def _spread(logp: Tensor, reward: Tensor) -> float:
    """Standard deviation of the reward under a policy."""
    mean = logp.exp() @ reward
    return float((logp.exp() @ (reward - mean).square()).sqrt())


def _two(base: Model, ref: Tensor, first: Tensor, reward: Tensor, seed: int, tier: runner.Tier) -> dict[str, float]:
    """Two rewards, one reward model for each: what weights between them trade."""
    other = WORLD.reward(seed + 5000)
    second = _table(_arm(base, _pairs(base, other, seed, tier), seed, tier, RATES["arm"]))
    seen = []
    for share in SHARES:
        p = WORLD.logp(logit_ensemble.combine(ref, [(first, share), (second, 1 - share)])).exp()
        seen.append((float(p @ reward), float(p @ other)))
    ones, others = np.array(seen).T
    middle = (ones + others)[len(SHARES) // 2]
    return {
        "trade": float(min(np.diff(ones).min(), -np.diff(others).max())),
        "bulge": float(middle - (ones + others)[[0, -1]].mean()),
    }


# --- models ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _base(seed: int, tier: runner.Tier, d: int) -> Model:
    """Two layers, d wide, taught on samples of a random Markov source; shared by a seed's arms and sabotages."""
    tokenizer = build.train_tokenizer([], 259)
    fresh = build.build("llama", tokenizer, d=d, layers=2, heads=4, context=16, seed=seed)
    drawn = _drawn(WORLD.logp(WORLD.source(seed, 0.7)), 2000, seed)
    demos = [Demo(prompt=PROMPT, completion=WORLD.text(WORLD.answers[i])) for i in drawn]
    fit = Fit(lr=3e-3, steps=STEPS[tier][0], rows=64, schedule="cosine", seed=seed)
    model = baselines.sft(fresh, demos, fit=fit).models["model"]
    assert isinstance(model, Model)
    return model


def _pairs(base: Model, reward: Tensor, seed: int, tier: runner.Tier, right: float = 1.0) -> list[Preference]:
    """Pairs of the base's answers, the better labelled so with probability `sigmoid(SURE (r - r'))`."""
    draw = np.random.default_rng([seed, 63])
    two = _drawn(WORLD.logp(_table(base)), 2 * PAIRS[tier], seed + 1).reshape(-1, 2)
    two = two[two[:, 0] != two[:, 1]]
    gap = (reward[two[:, 0]] - reward[two[:, 1]]).numpy()
    first = draw.random(len(two)) < 1 / (1 + np.exp(-SURE * gap))
    first ^= draw.random(len(two)) >= right
    return [
        Preference(prompt=PROMPT, chosen=WORLD.text(WORLD.answers[a]), rejected=WORLD.text(WORLD.answers[b]))
        for (a, b) in (pair if better else pair[::-1] for pair, better in zip(two, first, strict=True))
    ]


def _drawn(logp: Tensor, n: int, seed: int) -> Any:
    p = logp.double().exp().numpy()
    return np.random.default_rng([seed, 64]).choice(len(p), size=n, p=p / p.sum())


def _fit(seed: int, tier: runner.Tier, lr: float) -> Fit:
    return Fit(lr=lr, steps=STEPS[tier][1], rows=64, schedule="linear", seed=seed)


def _arm(start: Model, pairs: list[Preference], seed: int, tier: runner.Tier, lr: float) -> Model:
    guided = alignment.genarm(start, pairs, beta_r=1.0, fit=_fit(seed, tier, lr)).models["model"]
    arm: Model = guided.members[1]
    return arm


@functools.lru_cache(maxsize=64)
def _arm_of(seed: int, tier: runner.Tier, right: float) -> Model:
    """Shared by a seed's sabotages, which change what is done with it or, by `right`, its pairs."""
    base = _base(seed, tier, 64)
    return _arm(base, _pairs(base, WORLD.reward(seed), seed, tier, right), seed, tier, RATES["arm"])


class _Scorer(nn.Module):
    """A trajectory reward model: one number after the last token read."""

    def __init__(self, start: Model) -> None:
        super().__init__()
        self.body: Any = copy_of(start).module.base_model
        self.head = nn.Linear(start.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores after every token, `(B, T)`."""
        return self.head(self.body(input_ids=ids, use_cache=False).last_hidden_state)[..., 0]


@functools.lru_cache(maxsize=64)
def _trajectory(seed: int, tier: runner.Tier) -> tuple[Tensor, Tensor]:
    """Bradley-Terry on whole answers; then asked of prefixes too, as ARGS does: scores of each next letter `(P, V)`,
    and of whole answers `(n,)`. Shared as `_arm_of` is."""
    base = _base(seed, tier, 64)
    pairs = _pairs(base, WORLD.reward(seed), seed, tier)
    torch.manual_seed(seed)
    scorer, fit = _Scorer(base), _fit(seed, tier, RATES["trajectory"])
    head, letters = _ids(base)
    sides = [[[*head, *(letters[ord(c) - 97] for c in text)] for text in texts]
             for texts in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)]  # fmt: skip
    chosen, rejected = (torch.tensor(side) for side in sides)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=fit.lr, weight_decay=0.0)
    draw = np.random.default_rng([seed, 65])
    for step in range(STEPS[tier][1]):
        for group in optimizer.param_groups:
            group["lr"] = fit.lr * (1 - step / STEPS[tier][1])
        some = torch.tensor(draw.integers(len(pairs), size=fit.rows))
        scores = [scorer(side[some])[:, -1] for side in (chosen, rejected)]
        optimizer.zero_grad()
        preference.pairwise(scores[0] - scores[1]).mean().backward()
        nn.utils.clip_grad_norm_(scorer.parameters(), fit.clip)
        optimizer.step()
    with torch.no_grad():
        every = scorer(torch.tensor([[*head, *(letters[c] for c in y)] for y in WORLD.answers]))
    before, letter = WORLD.paths
    out = torch.zeros(len(WORLD.prefixes), WORLD.letters)
    out[before, letter] = every[:, len(head) :]
    return out.double(), every[:, -1].double()


@torch.no_grad()
def _table(model: Model) -> Tensor:
    """Logits of every letter after every prefix, `(P, V)`: what lies on other tokens is left out."""
    head, letters = _ids(model)
    ids = torch.tensor([[*head, *(letters[c] for c in y[:-1])] for y in WORLD.answers])
    logits = model.module(input_ids=ids, use_cache=False).logits[:, len(head) - 1 :, letters]
    out = torch.zeros(len(WORLD.prefixes), WORLD.letters, dtype=torch.float64)
    out[WORLD.paths[0]] = logits.double()
    return out


def _ids(model: Model) -> tuple[list[int], list[int]]:
    """The prompt's tokens and the letters'."""
    row = encode.row(model.tokenizer, PROMPT, WORLD.text(tuple(range(WORLD.letters))), "causal", 16, end=False)
    return list(row.prompt), list(row.completion)


@torch.no_grad()
def _decoder_off(base: Model, arm: Model, ref: Tensor, by: Tensor) -> float:
    """How far the logits processor, token by token from its cache, is from `p_base p_arm`, the largest of all p."""
    head, letters = _ids(base)
    decoder = guide.GuidedDecoder(base, [(arm, 1.0)])
    ids = torch.tensor([[*head, *(letters[c] for c in y[:-1])] for y in WORLD.answers])
    wanted = (ref.log_softmax(-1) + by.log_softmax(-1)).softmax(-1)
    worst = 0.0
    for t in range(WORLD.length):
        read = ids[:, : len(head) + t]
        scores = decoder(read, base.module(input_ids=read, use_cache=False).logits[:, -1])[:, letters]
        worst = max(worst, float((scores.softmax(-1) - wanted[WORLD.paths[0][:, t]]).abs().max()))
    return worst


def _backwards(base: Tensor, guides: Any, normalize: bool = False) -> Tensor:
    return _combine(base, [(x, -alpha) for x, alpha in guides], normalize)


def _divided(base: Tensor, guides: Any, normalize: bool = False) -> Tensor:
    return _combine(base, guides, True)


_combine = logit_ensemble.combine  # the intact one, which the sabotages wrap
_PATCHED = "didact.models.logit_ensemble:combine"


def _more(name: str, a: str, b: str, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="difference", a=a, b=b, unit="sd of reward", **more)


def _bound(name: str, a: str, null: float, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="bound", a=a, null=null, **more)


_BEATS = "more reward than a trajectory reward model"

CLAIM = runner.Claim(
    method="genarm",
    text=(
        "At the same distance from the base model, guidance by an autoregressive reward model earns more reward than "
        "by one trained on whole answers, and nearly as much as a model taught by DPO; a smaller one serves too."
    ),
    run=run,
    gates=(
        verdict.gate("answers differ in reward", "base.spread", at_least=0.5, unit="sd of reward"),
        verdict.gate("the trajectory model knows whole answers", "whole.reward_07", at_least=0.5, unit="sd of reward"),
    ),
    tests=(
        _more(_BEATS, "arm.reward_07", "trajectory.reward_07"),
        _more("also nearer to the base", "arm.reward_03", "trajectory.reward_03"),
        _more("more than sharpening the base", "arm.reward_07", "untrained.reward_07"),
        _bound("nine tenths of DPO's gain", "arm.kept", 0.9, unit="of DPO's gain"),
        _bound("weak to strong", "weak.kept", 0.6, unit="of the large one's gain"),
        _bound("the weight is a knob: reward", "arm.rise", 0.0, unit="sd of reward"),
        _bound("the weight is a knob: distance", "arm.rise_kl", 0.0, unit="nats"),
        _bound("two rewards trade by their weights", "two.trade", 0.0, unit="sd of reward"),
        verdict.Test(name="the decoder samples what the formula says", kind="exact", a="arm.decoder", margin=1e-4,
                     unit="probability, the largest error"),
        _bound("half of each is better than a mixture", "two.bulge", 0.0, unit="sd of reward", gates="none"),
        _more("the log-ratio in its place is worse", "arm.reward_07", "difference.reward_07", gates="none"),
        _more("what the true reward would give", "optimum.reward_07", "arm.reward_07", gates="none"),
    ),
    sabotages=(
        runner.Sabotage(name="sign of the reward flipped", breaks="more than sharpening the base",
                        patch={_PATCHED: _backwards}, options={"parts": ("trajectory",)}, metric="arm.reward_07"),
        runner.Sabotage(name="divided by the sum of weights", breaks="the decoder samples what the formula says",
                        patch={_PATCHED: _divided}, options={"parts": ("trajectory",)}, metric="arm.decoder"),
        runner.Sabotage(name="labels by coin", breaks="more than sharpening the base",
                        options={"parts": ("trajectory",), "right": 0.5}, metric="arm.reward_07"),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip
