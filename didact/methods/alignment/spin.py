"""Self-play fine-tuning: the model against the model it was a round ago, on demonstrations alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch
from didact.infer import generate
from didact.learn import language
from didact.learn import rounds as loop
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.learn.rounds import Round
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Demo, Fit, Preference, Result, UserError

PRESETS: dict[str, dict[str, object]] = {
    "hinge": {"loss": "hinge"},
    "exponential": {"loss": "exponential"},
    "correlation": {"loss": "correlation"},
    "printed": {"window": "current"},  # the algorithm in the paper; the code has the previous round's pairs too
    "steady": {"lam": (2.0,), "lr_factors": (1.0,)},
}


class RoundData(NamedTuple):
    """A round's pairs (real, own), as rows and as records, and what they are like."""

    items: list[ExampleGroup]
    records: list[Preference]
    facts: dict[str, float]


@method(
    "spin",
    paper="Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
    year=2024,
    source="arXiv:2401.01335",
    gives=("models", "records", "findings"),
    capabilities=("generate", "train"),
    protocol="answer",
    presets=PRESETS,
)
def spin(
    model: Model,
    demos: Sequence[Demo],
    *,
    rounds: int = 4,
    lam: Sequence[float] = (0.1, 0.1, 0.1, 5.0),
    lr_factors: Sequence[float] = (1.0, 1.0, 0.2, 0.2),
    loss: Literal["logistic", "hinge", "exponential", "correlation"] = "logistic",
    window: Literal["previous", "current", "all"] = "previous",
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    sft_weight: float = 0.0,
    reference_free: bool = False,
    fit: Fit = Fit(lr=5e-7, epochs=3, rows=64, warmup=0.3, optimizer="adam", betas=(0.0, 0.99)),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Result:
    """Get more out of demonstrations a model was already tuned on, without preferences or a reward.

    In every round the model as the round began, the opponent p_t, answers the prompts, and the new one learns to
    tell people's answers y from those y':

        L = mean l(lam [(logp(y) - logp_t(y)) - (logp(y') - logp_t(y'))]),    l(u) = log(1 + e^-u)

    logp is the SUM over an answer's tokens. What comes out is the next round's opponent. A model that answers as
    the demonstrations do has nothing to tell apart: there L = log 2 stays. Solved to its end a round reaches
    p ∝ p_t (p_data / p_t)^(1/lam), so lam = 1 lands on the demonstrations' distribution, larger lam goes part of the
    way, and lam < 1/2 overshoots it: the paper's 0.1 relies on few, small steps.

    Answers of both sides are cut after `max_new_tokens`, so that neither length nor end token gives a side away.
    Dropout is off. The paper's RMSprop is Adam with betas (0, 0.99), but for Adam's bias correction.

    Args:
        model: a causal or seq2seq model, tuned on the demonstrations already; it stays as it was.
        demos: prompts with the answers of people.
        rounds: how often the opponent is replaced.
        lam: of every round; the last goes on for further ones.
        lr_factors: share of `fit.lr` in every round; the last goes on.
        loss: l: logistic, hinge max(0, 1 - u), exponential e^-u, correlation 1 - u.
        window: pairs of a round: its own and the `previous` one's (the official code), its own, or all so far.
        samples: answers of the opponent to every prompt; each makes a pair.
        max_new_tokens: of an answer, both sides.
        temperature: at which the opponent answers.
        sft_weight: weight of -logp(y) beside L; 0 in the paper.
        reference_free: leave logp_t out of L.
        fit: how to train one round, which is laid over its own pairs and those of the window.
        hooks: called around every step of every round.

    Returns:
        The last round's model; all pairs as preferences, with their `round`; `findings["rounds"]`: lengths, ends
        and log-probs of both sides. The history has `real` and `own`, lam times the log-ratios of the two sides.

    Raises:
        UserError: an option is out of range; a completion longer than the context; the loss became NaN.
    """
    if rounds < 1 or samples < 1 or max_new_tokens < 1 or not lam or not lr_factors:
        raise UserError("spin needs rounds, samples, max_new_tokens, lam and lr_factors of 1 or more")
    if min(lam) <= 0 or min(lr_factors) < 0 or temperature <= 0 or sft_weight < 0:
        raise UserError("spin needs lam and temperature above 0, and lr_factors and sft_weight of 0 or more")
    pairs = [(d.prompt, d.completion) for d in demos]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "demos")
    real = [loop.as_sampled(r, model, max_new_tokens) for r in rows]
    how = generate.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    so_far: list[list[ExampleGroup]] = []

    def collect(now: Round) -> RoundData:
        made = now.samples([r.prompt for r in real], samples, how)
        items: list[ExampleGroup] = [
            (r, TokenizedExample(r.prompt, c.tokens)) for r, answers in zip(real, made, strict=True) for c in answers
        ]
        records = [
            Preference(prompt=d.prompt, chosen=d.completion, rejected=c.text, extra={"round": now.number})
            for d, answers in zip(demos, made, strict=True)
            for c in answers
        ]
        so_far.append(items)
        return RoundData(items, records, _facts(items, generate.ends(model)))

    def train(now: Round, data: RoundData) -> TrainResult:
        first = {"current": now.number, "previous": max(0, now.number - 1), "all": 0}[window]
        items = [item for older in so_far[first:] for item in older]
        scale, rate = _of(lam, now.number), _of(lr_factors, now.number) * fit.lr
        # The reference is what this round starts from, for pairs that an earlier opponent answered too.
        ref = language.reference_logp(now.model, items).to(now.model.device)

        def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
            logp, _ = language.sequence_logp(student, micro)
            was = ref[micro.index]
            against = torch.zeros_like(was) if reference_free else was
            losses = preference.spin(logp[:, 0], logp[:, 1], against[:, 0], against[:, 1], scale, loss)
            moved = (scale * (logp - was)).detach()
            out = {
                "spin": Term(losses.sum(), "pairs.rows"),
                "real": Term(moved[:, 0].sum(), "pairs.rows", 0.0),
                "own": Term(moved[:, 1].sum(), "pairs.rows", 0.0),
                "margin": Term((moved[:, 0] - moved[:, 1]).sum(), "pairs.rows", 0.0),
                "accuracy": Term((moved[:, 0] > moved[:, 1]).to(moved).sum(), "pairs.rows", 0.0),
                "logp_real": Term(logp[:, 0].detach().sum(), "pairs.rows", 0.0),
                "logp_own": Term(logp[:, 1].detach().sum(), "pairs.rows", 0.0),
            }
            return out | ({"sft": Term(-logp[:, 0].sum(), "pairs.rows", sft_weight)} if sft_weight else {})

        taught = language.train(
            now.model, {"pairs": items}, terms, now.fit.replace(lr=rate), hooks=[loop.NoDropout(), *hooks], name="train"
        )
        return taught

    chosen: dict[str, Any] = {
        "lam": list(lam), "lr_factors": list(lr_factors), "loss": loss, "window": window, "samples": samples,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "sft_weight": sft_weight,
        "reference_free": reference_free, "data": hashlib.sha256(repr(real).encode()).hexdigest()[:16],
    }  # fmt: skip
    rounds_result = loop.run_rounds(model, rounds, collect, train, fit, name="spin", identity=chosen, hooks=hooks)
    told = [
        {
            "round": n,
            "lam": _of(lam, n),
            "lr": _of(lr_factors, n) * fit.lr,
            **m.facts,
            **_course(rounds_result.history, n),
        }
        for n, m in enumerate(rounds_result.data)
    ]
    return Result(
        models={"model": rounds_result.model},
        records=[r for m in rounds_result.data for r in m.records],
        findings={"rounds": told},
        history=rounds_result.history,
        cost=rounds_result.cost,
        warnings=_warnings(rounds_result.data),
    )


def _of(values: Sequence[float], number: int) -> float:
    """A round's value; the last goes on."""
    return float(values[min(number, len(values) - 1)])


def _facts(items: Sequence[ExampleGroup], ends: frozenset[int]) -> dict[str, float]:
    """How long the sides are in tokens, how often they come to their end, how often they are the same."""
    sides = {"real": [i[0].completion for i in items], "own": [i[1].completion for i in items]}
    mean: dict[str, float] = {}
    for name, answers in sides.items():
        mean[f"length_{name}"] = sum(map(len, answers)) / len(answers)
        mean[f"ended_{name}"] = sum(a[-1] in ends for a in answers) / len(answers)
    same = sum(a == b for a, b in zip(sides["real"], sides["own"], strict=True)) / len(items)
    return {"pairs": len(items), **mean, "same": same}


def _course(history: Sequence[Mapping[str, Any]], number: int) -> dict[str, float]:
    """Log-probs of both sides, SUM a sequence, in the first and the last batch of a round; and where it ended."""
    rows = [row for row in history if row["round"] == number]
    if not rows:
        return {}
    out = {
        f"{side}_{when}": row[side] for when, row in (("first", rows[0]), ("last", rows[-1]))
        for side in ("logp_real", "logp_own")
    }  # fmt: skip
    return out | {"accuracy": rows[-1]["accuracy"], "margin": rows[-1]["margin"]}


def _warnings(data: Sequence[RoundData]) -> list[str]:
    """Where the sides can be told apart by their ends alone."""
    out = []
    for number, m in enumerate(data):
        gap = abs(m.facts["ended_real"] - m.facts["ended_own"])
        if gap > 0.5:
            out.append(
                f"round {number}: {m.facts['ended_real']:.0%} of the demonstrations and {m.facts['ended_own']:.0%} of "
                "the model's answers come to an end: raise max_new_tokens, or tune the model first"
            )
    return out
