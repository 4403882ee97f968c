"""Supervised fine-tuning (SFT) on demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.learn import language
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Result


@method(
    "sft",
    paper="Supervised fine-tuning on demonstrations",
    year=2022,
    source="arXiv:2203.02155",
    protocol=("answer",),
    baseline=True,
)
def sft(
    model: Model,
    demos: Sequence[Demo],
    *,
    loss_on: Literal["completion", "all"] = "completion",
    fit: Fit = Fit(lr=2e-5, epochs=3, rows=16, schedule="linear"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model to give the completions of demonstrations.

        L = -(1/N) sum over the batch's N label tokens of log p(token | what precedes it)

    Args:
        model: a causal or seq2seq model; left unchanged, a trained copy is returned.
        demos: prompts with the completions to learn.
        loss_on: completion tokens, or all tokens of prompt and completion (causal models).
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    pairs = [(d.prompt, d.completion) for d in demos]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "demos")
    if loss_on == "all" and model.kind == "causal":
        rows = [TokenizedExample((r.prompt + r.completion)[:1], (r.prompt + r.completion)[1:]) for r in rows]
    streams = {"demos": language.single(rows)}
    return language.train(model, streams, language.nll, fit, hooks=hooks, name="sft").result()
