"""The likeliest span of a passage, exactly: one decoder row per start scores every span that begins there.

The score of the span x_i..x_j under a prompt X, lower is better, SUM and not mean, the end token included:

    total(i, j) = sum_{k=i..j} -log P(x_k | X, x_i..x_{k-1})  -  log P(end | X, x_i..x_j)

The logits after x_j score both the next passage token and the end, so n rows give all n(n+1)/2 spans. Rows share the
prompt, which is read once; each extends to the end of the passage at most.
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
LOGITS = 1 << 26  # most logits in one chunk (256 MiB in float32)
PROBED = 4  # starts decoded first, to bound the others
SLACK = 1e-4  # nats of rounding error allowed in a bound


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
    """The tokens that the row of each start reads: `longest`, or fewer at the passage's end."""
    return [tuple(passage[i : i + longest]) for i in range(len(passage))]


def totals(nll: Floats, end: Floats) -> Floats:
    """`total (n, m)` from token and end nlls: the SUM over the span's tokens, and the end after the last."""
    return nll.cumsum(1) + end


def longest(model: Model, question: EncodedQuestion, max_len: int = 0) -> int:
    """Tokens of the longest span that is scored: the smallest of the cap, the passage and the room in the context."""
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
    """Score all spans of up to `max_len` tokens (0: all), with one decoder row per start.

    Args:
        model: any causal or seq2seq model; the prompt is read once for supported types, else with every row.
        questions: prompts and passages; rows of several questions are batched.
        form: the end token, and the constant tokens an answer begins with.
        max_len: longest span.
        chunk_tokens: prompt and row tokens in memory at once; changes memory and speed, never the result. A chunk is
            halved when memory runs out.
        prune: skip starts that cannot have one of the `top` best spans: no span scores below its first token, so
            the first tokens, which the prompt alone scores, and a few rows bound the rest. The best are the same.
        top: with `prune`, how many distinct spans are needed.
        length_norm: with `prune`, how they will be compared; see `best`.
    """
    training = model.module.training
    model.module.eval()
    out: dict[int, SpanScores] = {}
    try:
        for group in by_length([len(q.prompt) for q in questions], chunk_tokens):
            batch = [questions[i] for i in group]
            scores = _score(model, batch, form, max_len, chunk_tokens, prune, top, length_norm)
            out.update(zip(group, scores, strict=True))
    finally:
        model.module.train(training)
    return [out[i] for i in range(len(questions))]


def best(
    question: EncodedQuestion, scores: SpanScores, form: PromptFormat, top: int = 1, length_norm: bool = False
) -> list[Span]:
    """The `top` best spans with distinct texts; ties go to the first in row-major order.

    Args:
        question: has the passage's texts.
        scores: of its spans.
        form: with `length_norm`, its constant tokens count towards the length.
        top: most spans returned.
        length_norm: compare (nll + bos) / (tokens, end and constant tokens), T5's total / (length + 2).
    """
    total = totals(scores.nll, scores.end)
    compared = normed(total, scores.bos, form) if length_norm else total
    spans: dict[str, Span] = {}
    for place in np.argsort(compared, axis=None, kind="stable"):
        i, t = divmod(int(place), compared.shape[1])
        if len(spans) == top or not np.isfinite(compared[i, t]):
            break
        # A string has one score at all its occurrences; rounding does not choose among them.
        span = span_of(question, question.passage[i : i + t + 1], float(total[i, t]), float(compared[i, t]))
        if span.text:
            spans.setdefault(span.text, span)
    return list(spans.values())


def span_of(question: EncodedQuestion, tokens: tuple[int, ...], nll: float, score: float) -> Span:
    """Tokens of the passage as a span at their first occurrence."""
    first = question.find(tokens)
    assert first is not None
    return Span(question.text(first, first + len(tokens) - 1), nll, score, tokens, first)


def normed(total: Floats, bos: float, form: PromptFormat) -> Floats:
    """Nll per token, `(bos + total) / (span length + 1 + constant tokens)`."""
    return (bos + total) / (np.arange(1, total.shape[1] + 1) + 1 + len(form.bos))


def _score(
    model: Model, questions: Sequence[EncodedQuestion], form: PromptFormat, max_len: int, chunk_tokens: int,
    prune: bool, top: int, length_norm: bool,
) -> list[SpanScores]:  # fmt: skip
    """Score one batch of questions, whose prompts are read together."""
    prompts = continuations.read(model, [q.prompt for q in questions], form.bos, form.end)
    logp = token_functions.wide(prompts.first).log_softmax(-1)
    rows = [branches(q.passage, longest(model, q, max_len)) for q in questions]
    out = []
    for q, starts in enumerate(rows):
        nll, end = np.full((2, len(starts), len(starts[0])), np.inf)
        nll[:, 0] = -logp[q, [r[0] for r in starts]].double().cpu().numpy()
        out.append(SpanScores(nll, end, float(prompts.bos_nll[q]), 0))
    pending = [(q, i) for q, starts in enumerate(rows) for i in range(len(starts))]
    probed: set[tuple[int, int]] = set()
    if prune:
        order = [np.argsort(s.nll[:, 0], kind="stable")[: PROBED + top] for s in out]
        probed = {(q, int(i)) for q, starts in enumerate(order) for i in starts}
        _fill(model, prompts, questions, rows, sorted(probed), out, form.end, chunk_tokens)
        bounds = [_threshold(q, s, form, top, length_norm) for q, s in zip(questions, out, strict=True)]
        pending = [
            (q, i) for q, i in pending
            if (q, i) not in probed and _lower_bound(out[q], i, form, length_norm) <= bounds[q] + SLACK
        ]  # fmt: skip
    _fill(model, prompts, questions, rows, pending, out, form.end, chunk_tokens)
    counts = np.bincount([q for q, _ in (*probed, *pending)], minlength=len(out))
    return [replace(s, rows=int(n)) for s, n in zip(out, counts, strict=True)]


def _lower_bound(scores: SpanScores, start: int, form: PromptFormat, length_norm: bool) -> float:
    """A lower bound on the scores of all spans from this start."""
    first = scores.nll[start : start + 1, :1]
    return float(normed(np.tile(first, scores.nll.shape[1]), scores.bos, form)[0, -1] if length_norm else first[0, 0])


def _threshold(question: EncodedQuestion, scores: SpanScores, form: PromptFormat, top: int, length_norm: bool) -> float:
    """The score of the worst of the `top` best spans so far; infinity while there are fewer."""
    spans = best(question, scores, form, top, length_norm)
    return spans[-1].score if len(spans) == top else float("inf")


def _fill(
    model: Model, prompts: Continuations, questions: Sequence[EncodedQuestion],
    rows: Sequence[Sequence[tuple[int, ...]]], starts: Sequence[tuple[int, int]], out: Sequence[SpanScores], end: int,
    chunk_tokens: int,
) -> None:  # fmt: skip
    """Decode the rows of these (question, start) pairs and write their scores into `out`."""
    for chunk in _chunks([(len(rows[q][i]), len(questions[q].prompt)) for q, i in starts], chunk_tokens, model):
        batches = [[starts[k] for k in chunk]]
        while batches:
            batch = batches.pop()
            try:
                logits = token_functions.wide(prompts.logits([q for q, _ in batch], [rows[q][i] for q, i in batch]))
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise UserError("out of memory on a single row: lower max_len or limit") from None
                batches += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                continue
            total = logits.logsumexp(-1)
            after = padded([rows[q][i][1:] or (end,) for q, i in batch], model.pad).to(model.device)
            scores = logits[:, : after.shape[1]].gather(-1, after[..., None])[..., 0]
            nll = (total[:, : after.shape[1]] - scores).double().cpu().numpy()
            ends = (total - logits[..., end]).double().cpu().numpy()
            for k, (q, i) in enumerate(batch):
                n = len(rows[q][i])
                out[q].nll[i, 1:n] = nll[k, : n - 1]
                out[q].end[i, :n] = ends[k, :n]


def _chunks(sizes: Sequence[tuple[int, int]], chunk_tokens: int, model: Model) -> Iterator[list[int]]:
    """Batches of row indices, longest rows first, that fit in memory; a size is (row, prompt) tokens."""
    width = int(getattr(model.text_config, "vocab_size", None) or 1)
    group: list[int] = []
    row_length = prompt_length = 0
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k][0], k)):
        row, prompt = sizes[k]
        n, t, p = len(group) + 1, max(row_length, row), max(prompt_length, prompt)
        if group and (n * (t + p) > chunk_tokens or n * t * width > LOGITS):
            yield group
            group, t, p = [], row, prompt
        group, row_length, prompt_length = [*group, k], t, p
    if group:
        yield group
