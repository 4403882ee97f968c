"""LLMU: ascend on forget answers, learn random answers instead, stay near the start elsewhere (Yao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from didact.bounds import Count, NonNegative, Positive
from didact.data import encode
from didact.data.streams import ExampleGroup, MicroBatch
from didact.learn import language, specialists
from didact.learn.fit import Hook, Step, StopWhen, Term
from didact.methods.unlearning.survey import SURVEY, UNLEARN
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Result


@method("unlearning-survey.llmu", **SURVEY, protocol=("forget",))
def llmu(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    ascent: NonNegative = 0.5,
    mismatch: NonNegative = 1.0,
    keep: NonNegative = 1.0,
    answers: Count = 1,
    cap: Positive = 100.0,
    fit: Fit = UNLEARN,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Ascend on the forget answers, learn random answers in their place, stay near the start elsewhere (LLMU).

        L = -ascent CE(forget) + mismatch CE(forget prompt -> an answer of retain) + keep KL(start || model) on retain

    Args:
        model: a causal or seq2seq model; left unchanged.
        forget: records whose completions must go.
        retain: normal records: source of the random answers, on which the model must not change.
        ascent: e1, weight of the forget loss.
        mismatch: e2, weight of the random answers.
        keep: e3, weight of the divergence.
        answers: random answers for every forget record.
        cap: training stops once the forget loss, in nats per token, is above.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    draw = np.random.default_rng([fit.seed, 2310])
    random_answers = [[retain[i].completion for i in draw.integers(len(retain), size=answers)] for _ in forget]
    columns = [[(d.prompt, d.completion) for d in forget]]
    columns += [[(d.prompt, o[k]) for d, o in zip(forget, random_answers, strict=True)] for k in range(answers)]
    rows = [encode.rows(model.tokenizer, c, model.kind, model.context, "forget") for c in columns]
    items: list[ExampleGroup] = list(zip(*rows, strict=True))
    label_tokens = sum(len(r.completion) for item in items for r in item)
    true_share = sum(len(item[0].completion) for item in items) / label_tokens

    def on_retain(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        return {"keep": language.token_mean(student, micro, token_functions.kl_from, keep, model, everywhere=True)}

    def on_forget(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        logp = forward.tokens(student, micro.tokens)["logp"]
        true_ = (micro.tokens.row % micro.arity == 0).to(logp)
        # Each mean is over its own tokens, which are a constant share of the stream's.
        return {
            "forget": Term(-(logp * true_).sum() / true_share, "forget.tokens", -ascent),
            "mismatch": Term(-(logp * (1 - true_)).sum() / max(1 - true_share, 1e-9), "forget.tokens", mismatch),
        }

    def above(step: Step) -> bool:
        return bool(step.log["forget"] > cap)

    streams = {"forget": items, "retain": language.single(specialists.rows(model, retain, "retain"))}
    losses = {"forget": on_forget, "retain": on_retain}
    return language.train(model, streams, losses, fit, hooks=[*hooks, StopWhen(above)], name="llmu").result()
