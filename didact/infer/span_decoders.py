"""Answers to questions about passages: exact likeliest span, greedy decoding constrained to the passage, or free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from didact.bounds import Count, Whole
from didact.data.encode import TokenizedExample
from didact.infer import beam, continuations, qa_prompts, span_scores
from didact.infer.qa_prompts import EncodedQuestion, PromptFormat
from didact.infer.span_scores import Floats, Span, SpanScores
from didact.models import forward
from didact.models.model import Model

FREE = 64  # most tokens of a free answer by default

Decoder = Literal["exact", "greedy", "constrained_greedy", "beam"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How answers are decoded.

    Args:
        max_len: most tokens of an answer; 0 is no limit for spans (and 64 for free decoding).
        top: distinct spans that `exact` returns per question.
        length_norm: compare spans by nll per token; see `span_scores.best`.
        beams: width of `beam`.
        limit: most prompt tokens; a longer passage is cut into windows, and the likeliest answer of them wins.
        window: words of a window.
        stride: words between the starts of two windows.
        prune: skip rows that cannot contain a best span; see `span_scores.score`.
        chunk_tokens: prompt and row tokens in memory at once.
    """

    max_len: Whole = 64
    top: Count = 1
    length_norm: bool = False
    beams: Count = 8
    limit: Count = 512
    window: Count = 512
    stride: Count = 120
    prune: bool = True
    chunk_tokens: Count = 16384


def answer(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    form: PromptFormat,
    decoders: Sequence[Decoder] = ("exact",),
    search: SearchConfig = SearchConfig(),
) -> dict[Decoder, list[list[Span]]]:
    """Answer (context, question) pairs with each decoder, best first; only `exact` returns several (`top`)."""
    room = min(search.max_len or FREE, model.context // 2) if model.kind == "causal" else 0
    limit = min(search.limit, model.context - room)
    windows = [qa_prompts.encode_windows(model, form, *p, limit, search.window, search.stride) for p in pairs]
    questions, owner = [q for w in windows for q in w], [i for i, w in enumerate(windows) for _ in w]
    spans: dict[Decoder, list[list[Span]]] = {}
    if {"exact", "constrained_greedy"} & set(decoders):
        top, norm = search.top, search.length_norm
        scores = span_scores.score(model, questions, form, search.max_len, search.chunk_tokens, search.prune, top, norm)
        scored = list(zip(questions, scores, strict=True))
        if "exact" in decoders:
            spans["exact"] = [span_scores.best(q, s, form, top, norm) for q, s in scored]
        if "constrained_greedy" in decoders:
            spans["constrained_greedy"] = [[constrained_greedy(q, s)] for q, s in scored]
    widths: dict[Decoder, int] = {"greedy": 1, "beam": search.beams}
    for name, width in widths.items():
        if name in decoders:
            spans[name] = [[s] for s in free(model, questions, form, search.max_len or FREE, width)]
    return {name: _merged(spans[name], owner, len(pairs), search.top) for name in decoders}


def _merged(by_window: Sequence[list[Span]], owner: Sequence[int], n: int, top: int) -> list[list[Span]]:
    """The best spans over the windows of each question."""
    out: list[dict[str, Span]] = [{} for _ in range(n)]
    for span, i in sorted(
        ((s, i) for row, i in zip(by_window, owner, strict=True) for s in row), key=lambda x: x[0].score
    ):
        out[i].setdefault(span.text, span)
    return [list(spans.values())[:top] for spans in out]


def constrained_greedy(question: EncodedQuestion, scores: SpanScores) -> Span:
    """Greedy decoding constrained to spans of the passage, read off the scores: the likeliest passage token first, then
    the likeliest of the end and the tokens that follow the answer so far at any of its occurrences."""
    alive = np.arange(len(question.passage))
    tokens: list[int] = []
    nll, end, ends_here = 0.0, 0.0, False
    for t in range(scores.nll.shape[1]):
        alive = alive[alive + t < len(question.passage)]
        after = scores.nll[alive, t]
        if not len(alive) or (ends_here and end <= after.min()):
            break
        token = question.passage[alive[after.argmin()] + t]
        alive = alive[[question.passage[i + t] == token for i in alive]]
        tokens.append(token)
        nll += float(after.min())
        end, ends_here = float(scores.end[alive[0], t]), bool(question.text(alive[0], alive[0] + t))
    return span_scores.span_of(question, tuple(tokens), nll + end, nll + end)


@torch.no_grad()
def free(
    model: Model, questions: Sequence[EncodedQuestion], form: PromptFormat, max_len: int = FREE, beams: int = 1,
    rows: int = 64,
) -> list[Span]:  # fmt: skip
    """The model's unconstrained answers, up to the end token: greedy, or the likeliest of a beam.

    A span's `start` is set where the answer's tokens occur in the passage.
    """
    ends = qa_prompts.endings(model, form)
    if model.kind == "causal":
        rooms = [min(max_len, model.context - len(q.prompt)) for q in questions]
        hypotheses = beam.search(model, [q.prompt for q in questions], beams, 0.0, rooms, ends, rows=rows)
        answers = [h[0].tokens for h in hypotheses]
    else:
        answers = _generated(model, questions, form, max_len, beams, rows, ends)
    answers = [a[: next((k for k, token in enumerate(a) if token in ends), None)] for a in answers]
    texts = [str(model.tokenizer.decode(list(a), skip_special_tokens=True)).strip() for a in answers]
    nlls = answer_nll(model, questions, form, answers)
    return [
        Span(text, nll, nll, tokens, q.find(tokens))
        for q, text, tokens, nll in zip(questions, texts, answers, nlls, strict=True)
    ]


def _generated(
    model: Model, questions: Sequence[EncodedQuestion], form: PromptFormat, max_len: int, beams: int, rows: int,
    ends: Collection[int],
) -> list[tuple[int, ...]]:  # fmt: skip
    """Decode after the constant tokens with an encoder-decoder's own `generate`."""
    out: list[tuple[int, ...]] = [()] * len(questions)
    module: Any = model.module
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    for at in range(0, len(order), rows):
        group = order[at : at + rows]
        ids, mask = continuations.padded_prompts(model, [questions[i].prompt for i in group])
        start = continuations.decoder_start(model, form.bos, len(group))
        decoded = module.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_len, do_sample=False, num_beams=beams,
            decoder_input_ids=start, eos_token_id=sorted(ends), pad_token_id=model.pad,
            **({"length_penalty": 0.0} if beams > 1 else {}),
        )  # fmt: skip
        for i, tokens in zip(group, decoded[:, start.shape[1] :].tolist(), strict=True):
            out[i] = tuple(tokens)
    return out


def answer_nll(
    model: Model, questions: Sequence[EncodedQuestion], form: PromptFormat, answers: Sequence[Sequence[int]]
) -> list[float]:
    """The nll of given answers with their end token, by teacher forcing."""
    rows = [TokenizedExample(q.prompt, (*form.bos, *a, form.end)) for q, a in zip(questions, answers, strict=True)]
    out = [0.0] * len(rows)
    for group, batch, values in forward.score(model, rows):
        logp = values["logp"].double().cpu().numpy()
        owner = batch.row.cpu().numpy()
        for k, i in enumerate(group):
            out[i] = float(-logp[owner == k][len(form.bos) :].sum())
    return out


def forced(model: Model, question: EncodedQuestion, form: PromptFormat, max_len: int = 0) -> Floats:
    """`total (n, m)` by teacher forcing every span separately: the n(n+1)/2 rows that exact decoding avoids."""
    m = span_scores.longest(model, question, max_len)
    spans = [(i, t) for i in range(len(question.passage)) for t in range(min(m, len(question.passage) - i))]
    out = np.full((len(question.passage), m), np.inf)
    for at in range(0, len(spans), 1024):
        batch = spans[at : at + 1024]
        answers = [question.passage[i : i + t + 1] for i, t in batch]
        for (i, t), nll in zip(batch, answer_nll(model, [question] * len(batch), form, answers), strict=True):
            out[i, t] = nll
    return out
