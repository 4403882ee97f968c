"""Recurring span selection: pre-training on raw text for extractive question answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count
from didact.data import spans
from didact.infer import qa_prompts
from didact.learn import language, span_rows
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Result, Text


@method(
    "exact-extract.rss",
    paper="How Optimal is Greedy Decoding for Extractive Question Answering?",
    year=2022,
    source="arXiv:2108.05857",
    protocol=("extract",),
)
def exact_extract_rss(
    model: Model,
    passages: Sequence[Text],
    *,
    select: Literal["recurring", "random"] = "recurring",
    longest: Count = spans.LONGEST,
    template: str = qa_prompts.TEMPLATE,
    bos: str = "auto",
    end: str = "auto",
    limit: Count = 512,
    fit: Fit = Fit(lr=5e-5, rows=32, schedule="constant", optimizer="adafactor"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model on raw text to answer from its input, by recurring span selection.

    In each passage one recurring span is chosen, one of its occurrences is removed, and the model learns to restore it;
    since another occurrence is left in the passage, copying pays:

        L = -(1/N) sum over the batch's N target tokens of log p(token | passage without the span, target so far)

    An encoder-decoder reads the passage with <extra_id_0> in the span's place and answers <extra_id_0> span
    <extra_id_1>. A decoder-only model (not in the paper) reads up to an occurrence that is not the first, and continues
    with the span and its end. Passages longer than the model's input are cut before spans are selected, so that the
    other occurrence is always visible.

    Args:
        model: causal or seq2seq; left unchanged, a trained copy is returned.
        passages: raw text.
        select: recurring spans, or random spans of the same lengths from the same passages, the control.
        longest: maximum number of words in a span.
        template: prompt of the questions asked later; no question is seen in training.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        limit: maximum number of tokens in a passage.
        fit: how to train; an epoch is one span of each passage.
        hooks: called around every step.

    Raises:
        UserError: no span recurs in any passage; the loss became NaN.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    rows, without = span_rows.rss_rows(model, passages, form, select, longest, limit, fit.seed)
    trained = language.train(model, {"passages": language.single(rows)}, language.nll, fit, hooks=hooks, name="rss")
    text = f"{without} of {without + len(rows)} passages hold no recurring span and were left out"
    return trained.result(warnings=[text] if without else [])
