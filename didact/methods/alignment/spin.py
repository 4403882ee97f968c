"""Self-play fine-tuning (SPIN): the model against its previous round, on demonstrations alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from torch import Tensor

from didact.bounds import Count, NonNegative, Positive
from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup
from didact.infer import generate
from didact.infer.generate import SamplingConfig
from didact.learn import pairs
from didact.learn import rounds as round_loop
from didact.learn.fit import Hook, NoDropout
from didact.learn.language import TrainResult
from didact.learn.rounds import Round, RoundData
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Demo, Fit, Preference, Result

PRESETS: dict[str, dict[str, object]] = {
    "hinge": {"loss": "hinge"},
    "exponential": {"loss": "exponential"},
    "correlation": {"loss": "correlation"},
    "printed": {"window": "current"},  # the algorithm in the paper; the code has the previous round's pairs too
    "steady": {"lam": (2.0,), "lr_factors": (1.0,)},
}


@method(
    "spin",
    paper="Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
    year=2024,
    source="arXiv:2401.01335",
    gives=("models", "records", "findings"),
    capabilities=("generate", "train"),
    protocol=("answer",),
    presets=PRESETS,
)
def spin(
    model: Model,
    demos: Sequence[Demo],
    *,
    rounds: Count = 4,
    lam: Annotated[Sequence[Positive], MinLen(1)] = (0.1, 0.1, 0.1, 5.0),
    lr_factors: Annotated[Sequence[NonNegative], MinLen(1)] = (1.0, 1.0, 0.2, 0.2),
    loss: Literal["logistic", "hinge", "exponential", "correlation"] = "logistic",
    window: Literal["previous", "current", "all"] = "previous",
    samples: Count = 1,
    max_new_tokens: Count = 256,
    temperature: Positive = 1.0,
    sft_weight: NonNegative = 0.0,
    reference_free: bool = False,
    fit: Fit = Fit(lr=5e-7, epochs=3, rows=64, warmup=0.3, optimizer="adam", betas=(0.0, 0.99)),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Get more out of demonstrations a model was already tuned on, without preferences or a reward.

    In every round the model at the start of the round, the opponent p_t, answers the prompts, and the new one learns to
    tell the demonstrated answers y from those answers y':

        L = mean l(lam [(logp(y) - logp_t(y)) - (logp(y') - logp_t(y'))]),    l(u) = log(1 + e^-u)

    logp is the SUM over an answer's tokens. The result is the next round's opponent. For a model that already answers
    like the demonstrations the two cannot be told apart, and L stays at log 2. Trained to convergence a round reaches
    `p ∝ p_t (p_data / p_t)^(1/lam)`, so lam = 1 lands on the demonstrations' distribution, larger lam goes part of the
    way, and lam < 1/2 overshoots it: the paper's 0.1 relies on few, small steps.

    Answers of both sides are cut after `max_new_tokens`, so that neither length nor end token gives a side away.
    Dropout is off. The paper's RMSprop is Adam with betas (0, 0.99), except for Adam's bias correction.

    Args:
        model: a causal or seq2seq model, already tuned on the demonstrations; left unchanged.
        demos: prompts with answers written by people.
        rounds: how often the opponent is replaced.
        lam: one value per round; the last one also serves further rounds.
        lr_factors: factor of `fit.lr` per round; the last one also serves further rounds.
        loss: l: logistic, hinge max(0, 1 - u), exponential e^-u, correlation 1 - u.
        window: pairs of a round: its own and the `previous` one's (the official code), its own, or all so far.
        samples: the opponent's answers per prompt; each makes a pair.
        max_new_tokens: maximum length of an answer, both sides.
        temperature: sampling temperature of the opponent.
        sft_weight: weight of -logp(y), added to L; 0 in the paper.
        reference_free: leave logp_t out of L.
        fit: how to train one round; epochs and schedule cover all pairs of the window.
        hooks: called around every step of every round.

    Returns:
        The last round's model; all pairs as preferences, with their `round`; `findings["rounds"]`: lengths, share
        with an end token and log-probs by side. The history has `real` and `own`, lam times each side's log-ratio.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    answers = [(d.prompt, d.completion) for d in demos]
    rows = encode.rows(model.tokenizer, answers, model.kind, model.context, "demos")
    real = [round_loop.as_sampled(r, model, max_new_tokens) for r in rows]
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    collected: list[list[ExampleGroup]] = []

    def collect(now: Round) -> RoundData:
        completions = now.samples([r.prompt for r in real], samples, sampling)
        items: list[ExampleGroup] = [
            (r, TokenizedExample(r.prompt, c.tokens)) for r, own in zip(real, completions, strict=True) for c in own
        ]
        records = [
            Preference(prompt=d.prompt, chosen=d.completion, rejected=c.text, extra={"round": now.number})
            for d, own in zip(demos, completions, strict=True)
            for c in own
        ]
        collected.append(items)
        return RoundData(items, round_loop.pair_stats(items, generate.ends(model)), records)

    def train(now: Round, data: RoundData) -> TrainResult:
        first = {"current": now.number, "previous": max(0, now.number - 1), "all": 0}[window]
        scale = _of_round(lam, now.number)

        def pair_loss(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
            reference = torch.zeros_like(ref) if reference_free else ref
            losses = preference.spin(logp[:, 0], logp[:, 1], reference[:, 0], reference[:, 1], scale, loss)
            return losses - sft_weight * logp[:, 0] if sft_weight else losses

        def log(logp: Tensor, ref: Tensor, index: Tensor) -> Mapping[str, Tensor]:
            real, own = (scale * (logp - ref)).unbind(1)
            return {
                "real": real, "own": own, "margin": real - own, "accuracy": (real > own).to(real),
                "logp_real": logp[:, 0], "logp_own": logp[:, 1],
            }  # fmt: skip

        # The reference is this round's starting model, also for pairs that an earlier opponent answered.
        return pairs.train(
            now.model, [item for round_items in collected[first:] for item in round_items], pair_loss,
            now.fit.replace(lr=_of_round(lr_factors, now.number) * fit.lr), reference=now.model, log=log,
            hooks=[NoDropout(), *hooks], loss_name="spin",
        )  # fmt: skip

    outcome = round_loop.run_rounds(model, rounds, collect, train, fit, name="spin", hooks=hooks)
    findings = [
        {
            "round": n, "lam": _of_round(lam, n), "lr": _of_round(lr_factors, n) * fit.lr, **r.stats,
            **round_loop.course(outcome.history, n, "logp_real", "logp_own", "accuracy", "margin"),
        }
        for n, r in enumerate(outcome.data)
    ]  # fmt: skip
    return outcome.result(findings={"rounds": findings}, warnings=_warnings(outcome.data))


def _of_round(values: Sequence[float], number: int) -> float:
    """Return a round's value; rounds beyond the list get the last one."""
    return float(values[min(number, len(values) - 1)])


def _warnings(data: Sequence[RoundData]) -> list[str]:
    """Warn of rounds in which the end token alone tells the two sides apart."""
    out = []
    for number, r in enumerate(data):
        gap = abs(r.stats["ended_real"] - r.stats["ended_own"])
        if gap > 0.5:
            out.append(
                f"round {number}: {r.stats['ended_real']:.0%} of the demonstrations and {r.stats['ended_own']:.0%} of "
                "the model's answers come to an end: raise max_new_tokens, or tune the model first"
            )
    return out
