"""The likeliest span of a passage, exactly: one decoder row per start scores every span that begins there.

The score of the span x_i..x_j under a prompt X, lower is better, SUM and not mean, the end token included:

    total(i, j) = sum_{k=i..j} -log P(x_k | X, x_i..x_{k-1})  -  log P(end | X, x_i..x_j)

The logits after x_j score both the next passage token and the end, so n rows give all n(n+1)/2 spans. Rows share the
prompt, which is read once; they are as long as the passage lets them be and never wrap around it.
Source: Castel et al., How Optimal is Greedy Decoding for Extractive Question Answering?, arXiv:2108.05857.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from didact.data.streams import by_length, padded
from didact.infer import continuations
from didact.infer.continuations import Continuations
from didact.infer.qa_prompts import EncodedQuestion, PromptFormat
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import UserError

Floats = NDArray[np.float64]
LOGITS = 1 << 26  # held at once by one chunk (256 MiB in float32)
PROBED = 4  # starts tried first, to bound the others
SLACK = 1e-4  # nats by which rounding may move a bound


@dataclass(frozen=True)
class SpanScores:
    """Scores of the spans of one question, in nats; row i begins at the i-th passage token.

    `nll[i, t]` is -log P of token x_{i+t} after x_i..x_{i+t-1}, `end[i, t]` that of the end after x_i..x_{i+t}; both
    `(n, m)`, infinite where there is no span (or none that could be the best). `bos` is the nll of the format's
    constant tokens, `rows` how many starts were decoded.
    """

    nll: Floats
    end: Floats
    bos: float
    rows: int


class Span(NamedTuple):
    """An answer: its text, its nll in nats (end token in, constant first tokens out), and its tokens.

    `score` is what was compared: the nll, or the nll by length. `start` is its first token's place in the passage,
    None for what was decoded freely.
    """

    text: str
    nll: float
    score: float
    tokens: tuple[int, ...]
    start: int | None = None


def branches(passage: Sequence[int], longest: int) -> list[tuple[int, ...]]:
    """What the row of each start reads: `longest` tokens, fewer where the passage ends."""
    return [tuple(passage[i : i + longest]) for i in range(len(passage))]


def totals(nll: Floats, end: Floats) -> Floats:
    """`total (n, m)` from token and end nlls: the SUM over the span's tokens, and the end after the last."""
    return nll.cumsum(1) + end


def longest(model: Model, question: EncodedQuestion, max_len: int = 0) -> int:
    """Tokens of the longest span that is scored: the cap, the passage, and what the context leaves."""
    room = model.context - len(question.prompt) if model.kind == "causal" else len(question.passage)
    if room < 1:
        raise UserError(f"a prompt of {len(question.prompt)} tokens fills the context of {model.context}: lower limit")
    return min(max_len or len(question.passage), len(question.passage), room)


@torch.no_grad()
def score(
    model: Model,
    questions: Sequence[EncodedQuestion],
    form: PromptFormat,
    max_len: int = 0,
    chunk_tokens: int = 16384,
    prune: bool = False,
    top: int = 1,
    length_norm: bool = False,
) -> list[SpanScores]:
    """Scores of all spans of up to `max_len` tokens (0: all), from one decoder row per start.

    Args:
        model: any causal or seq2seq model; the prompt is read once where its type is proven, else with every row.
        questions: prompts and passages; rows of several run side by side.
        form: the end token, and what an answer begins with.
        max_len: longest span.
        chunk_tokens: prompt and row tokens held at once; changes memory and speed, never the result. It is halved
            where memory runs out.
        prune: skip starts that cannot hold one of the `top` best spans: no span scores below its first token, so
            the first tokens, which the prompt alone scores, and a few rows bound the rest. The best are the same.
        top: with `prune`, how many distinct spans are wanted.
        length_norm: with `prune`, how they will be compared; see `best`.
    """
    was = model.module.training
    model.module.eval()
    out: dict[int, SpanScores] = {}
    try:
        for group in by_length([len(q.prompt) for q in questions], chunk_tokens):
            some = [questions[i] for i in group]
            found = _score(model, some, form, max_len, chunk_tokens, prune, top, length_norm)
            out.update(zip(group, found, strict=True))
    finally:
        model.module.train(was)
    return [out[i] for i in range(len(questions))]


def best(
    question: EncodedQuestion, scores: SpanScores, form: PromptFormat, top: int = 1, length_norm: bool = False
) -> list[Span]:
    """The `top` best spans with distinct texts; ties go to the first in row-major order.

    Args:
        question: gives the texts.
        scores: of its spans.
        form: with `length_norm`, how many constant tokens count.
        top: how many.
        length_norm: compare (nll + bos) / (tokens, end and constant tokens), T5's total / (length + 2).
    """
    total = totals(scores.nll, scores.end)
    compared = normed(total, scores.bos, form) if length_norm else total
    found: dict[str, Span] = {}
    for place in np.argsort(compared, axis=None, kind="stable"):
        i, t = divmod(int(place), compared.shape[1])
        if len(found) == top or not np.isfinite(compared[i, t]):
            break
        # One string has one score wherever it stands; rounding does not choose among its places.
        span = span_of(question, question.passage[i : i + t + 1], float(total[i, t]), float(compared[i, t]))
        if span.text:
            found.setdefault(span.text, span)
    return list(found.values())


def span_of(question: EncodedQuestion, tokens: tuple[int, ...], nll: float, score: float) -> Span:
    """Tokens of the passage as a span, where they first stand."""
    first = question.find(tokens)
    assert first is not None
    return Span(question.text(first, first + len(tokens) - 1), nll, score, tokens, first)


def normed(total: Floats, bos: float, form: PromptFormat) -> Floats:
    """Nll by token, `(bos + total) / (span length + 1 + constant tokens)`."""
    return (bos + total) / (np.arange(1, total.shape[1] + 1) + 1 + len(form.bos))


def _score(
    model: Model, questions: Sequence[EncodedQuestion], form: PromptFormat, max_len: int, chunk_tokens: int,
    prune: bool, top: int, length_norm: bool,
) -> list[SpanScores]:  # fmt: skip
    """The scores of questions whose prompts are read together."""
    prompts = continuations.read(model, [q.prompt for q in questions], form.bos, form.end)
    logp = token_functions.wide(prompts.first).log_softmax(-1)
    rows = [branches(q.passage, longest(model, q, max_len)) for q in questions]
    out = []
    for q, starts in enumerate(rows):
        nll, end = np.full((2, len(starts), len(starts[0])), np.inf)
        nll[:, 0] = -logp[q, [r[0] for r in starts]].double().cpu().numpy()
        out.append(SpanScores(nll, end, float(prompts.bos_nll[q]), 0))
    left = [(q, i) for q, starts in enumerate(rows) for i in range(len(starts))]
    done: set[tuple[int, int]] = set()
    if prune:
        order = [np.argsort(s.nll[:, 0], kind="stable")[: PROBED + top] for s in out]
        done = {(q, int(i)) for q, some in enumerate(order) for i in some}
        _fill(model, prompts, questions, rows, sorted(done), out, form.end, chunk_tokens)
        bounds = [_bound(q, s, form, top, length_norm) for q, s in zip(questions, out, strict=True)]
        left = [
            (q, i) for q, i in left
            if (q, i) not in done and _least(out[q], i, form, length_norm) <= bounds[q] + SLACK
        ]  # fmt: skip
    _fill(model, prompts, questions, rows, left, out, form.end, chunk_tokens)
    counts = np.bincount([q for q, _ in (*done, *left)], minlength=len(out))
    return [replace(s, rows=int(n)) for s, n in zip(out, counts, strict=True)]


def _least(scores: SpanScores, start: int, form: PromptFormat, length_norm: bool) -> float:
    """What no span from this start scores below."""
    first = scores.nll[start : start + 1, :1]
    return float(normed(np.tile(first, scores.nll.shape[1]), scores.bos, form)[0, -1] if length_norm else first[0, 0])


def _bound(question: EncodedQuestion, scores: SpanScores, form: PromptFormat, top: int, length_norm: bool) -> float:
    """The score of the worst of the `top` best spans so far."""
    found = best(question, scores, form, top, length_norm)
    return found[-1].score if len(found) == top else float("inf")


def _fill(
    model: Model, prompts: Continuations, questions: Sequence[EncodedQuestion],
    rows: Sequence[Sequence[tuple[int, ...]]], wanted: Sequence[tuple[int, int]], out: Sequence[SpanScores], end: int,
    chunk_tokens: int,
) -> None:  # fmt: skip
    """Decode the wanted rows (question, start) and write their scores into `out`."""
    for chunk in _chunks([(len(rows[q][i]), len(questions[q].prompt)) for q, i in wanted], chunk_tokens, model):
        stack = [[wanted[k] for k in chunk]]
        while stack:
            some = stack.pop()
            try:
                logits = token_functions.wide(prompts.logits([q for q, _ in some], [rows[q][i] for q, i in some]))
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise UserError("out of memory on a single row: lower max_len or limit") from None
                stack += [some[len(some) // 2 :], some[: len(some) // 2]]
                continue
            total = logits.logsumexp(-1)
            after = padded([rows[q][i][1:] or (end,) for q, i in some], model.pad).to(model.device)
            scores = logits[:, : after.shape[1]].gather(-1, after[..., None])[..., 0]
            nll = (total[:, : after.shape[1]] - scores).double().cpu().numpy()
            ends = (total - logits[..., end]).double().cpu().numpy()
            for k, (q, i) in enumerate(some):
                n = len(rows[q][i])
                out[q].nll[i, 1:n] = nll[k, : n - 1]
                out[q].end[i, :n] = ends[k, :n]


def _chunks(sizes: Sequence[tuple[int, int]], chunk_tokens: int, model: Model) -> Iterator[list[int]]:
    """Rows, the longest first, that fit side by side; a size is (row, prompt) tokens."""
    width = int(getattr(model.text_config, "vocab_size", None) or 1)
    group: list[int] = []
    tall = deep = 0
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k][0], k)):
        own, past = sizes[k]
        n, t, p = len(group) + 1, max(tall, own), max(deep, past)
        if group and (n * (t + p) > chunk_tokens or n * t * width > LOGITS):
            yield group
            group, t, p = [], own, past
        group, tall, deep = [*group, k], t, p
    if group:
        yield group
