"""Exact span decoding, recurring-span pre-training, and few-shot tuning of a model that answers from a passage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from didact.data import encode, spans
from didact.data.encode import TokenizedExample
from didact.data.streams import MicroBatch
from didact.evaluate import protocols, qa
from didact.infer import qa_prompts, span_decoders
from didact.infer.qa_prompts import PromptFormat
from didact.infer.span_decoders import Decoder, SearchConfig
from didact.infer.span_scores import Span
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models.model import Model
from didact.registry import method
from didact.types import QA, Fit, Metric, Result, Text, UserError

PAPER = "How Optimal is Greedy Decoding for Extractive Question Answering?"
SOURCE = "arXiv:2108.05857"
SHOWN = 6  # sample answers


@method("exact-extract", paper=PAPER, year=2022, source=SOURCE, gives=("records", "findings"), capabilities=("logits",))
def exact_extract(
    model: Model,
    questions: Sequence[QA],
    *,
    decoder: Literal["exact", "greedy", "constrained_greedy", "beam"] = "exact",
    compare: bool = True,
    max_len: int = 64,
    top: int = 1,
    length_norm: bool = False,
    beams: int = 8,
    template: str = qa_prompts.TEMPLATE,
    bos: str = "auto",
    end: str = "auto",
    limit: int = 512,
    window: int = 512,
    stride: int = 120,
    prune: bool = True,
    chunk_tokens: int = 16384,
) -> Result:
    """Answer questions by the likeliest span of their passages, and tell how far greedy decoding is from it.

    With x_1..x_n the passage's tokens and X the prompt, the answer is the span that minimises

        total(i, j) = sum_{k=i..j} -log P(x_k | X, x_i..x_{k-1})  -  log P(end | X, x_i..x_j)

    exactly: one decoder row for each of the n starts scores all n(n+1)/2 spans, because the logits after x_j score
    both the next token and the end. Beside it stand greedy decoding and greedy decoding along the passage, and two
    diagnostics: extractiveness, the share of greedy answers that stand in the passage, and optimality, the share
    that are its likeliest span. A likelier span need not be a better answer: F1 says that.

    Args:
        model: causal or seq2seq, with the tokens it ends answers with.
        questions: questions, passages and accepted answers (an empty list where none is known).
        decoder: whose answers are written: exact; greedy; constrained_greedy (only along the passage); beam.
        compare: run exact, greedy and constrained greedy side by side.
        max_len: tokens of an answer at most; 0 is the passage's length, as in the paper (a free answer has 64).
        top: distinct spans written per question, with their nll.
        length_norm: compare spans by nll per token, T5's total / (length + 2); seldom better.
        beams: width of beam.
        template: prompt with {context} and {question}.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        limit: prompt tokens at most; longer passages are read in windows, and the likeliest answer wins.
        window: words of a window; shrinks by a tenth until all windows fit.
        stride: words between the beginnings of two windows.
        prune: skip starts whose first token alone scores worse than the best span; the answer is the same.
        chunk_tokens: tokens held at once; changes memory and speed, never the answer.

    Raises:
        UserError: the tokenizer lacks a token that answers begin or end with; an empty passage.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    search = SearchConfig(
        max_len=max_len, top=top, length_norm=length_norm, beams=beams, limit=limit, window=window, stride=stride,
        prune=prune, chunk_tokens=chunk_tokens,
    )  # fmt: skip
    beside: tuple[Decoder, ...] = ("exact", "greedy", "constrained_greedy") if compare else ()
    decoders: list[Decoder] = list(dict.fromkeys((decoder, *beside)))
    found = _answers(model, questions, form, decoders, search)
    said = {name: [spans_[0] for spans_ in rows] for name, rows in found.items()}
    records = [
        replace(q, extra=q.extra | _told(found[decoder][i], {n: s[i] for n, s in said.items() if n != decoder}, top))
        for i, q in enumerate(questions)
    ]
    other = "greedy" if "greedy" in said and decoder != "greedy" else decoder
    samples = [
        {"part": "questions", "prompt": q.question, "wanted": " / ".join(q.answers), "before": said[other][i].text,
         "after": said[decoder][i].text}
        for i, q in enumerate(questions[:SHOWN])
    ]  # fmt: skip
    metrics = protocols.compare(None, qa.compare(questions, said))
    told = {"decoder": decoder, "shown_before": other, "template": form.template, "questions": len(questions)}
    return Result(records=list(records), findings=told, metrics=metrics, samples=samples)


@method("exact-extract.rss", paper=PAPER, year=2022, source=SOURCE)
def exact_extract_rss(
    model: Model,
    passages: Sequence[Text],
    questions: Sequence[QA] | None = None,
    *,
    select: Literal["recurring", "random"] = "recurring",
    longest: int = spans.LONGEST,
    max_len: int = 64,
    template: str = qa_prompts.TEMPLATE,
    bos: str = "auto",
    end: str = "auto",
    limit: int = 512,
    fit: Fit = Fit(lr=5e-5, rows=32, schedule="constant", optimizer="adafactor"),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Teach a model to answer from what it reads, on raw text: recurring span selection.

    Of each passage one span that recurs is chosen, one of its occurrences is taken out, and the model learns to give
    it back; since another stands in the passage, copying pays:

        L = -(1/N) sum over the batch's N target tokens of log p(token | passage without the span, target so far)

    An encoder-decoder reads the passage with <extra_id_0> in the span's place and answers <extra_id_0> span
    <extra_id_1>. A decoder-only model (not in the paper) reads up to an occurrence that is not the first, and
    continues with the span and its end. Passages are cut where they are longer than the model reads, before spans
    are looked for, so that the other occurrence is always in sight.

    Args:
        model: causal or seq2seq; it stays as it was, a taught copy is returned.
        passages: raw text.
        questions: answered before and after, greedily and exactly.
        select: recurring spans, or random spans of the same lengths from the same passages, the control.
        longest: words of a span at most.
        max_len: tokens of an answer at most, where questions are answered.
        template: prompt of the questions; no question is seen in training.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        limit: tokens of a passage at most.
        fit: how to train; an epoch is one span of each passage.
        hooks: called around every step.

    Raises:
        UserError: no span recurs in any passage; the loss became NaN.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    rows, without = rss_rows(model, passages, form, select, longest, limit, fit.seed)
    taught = language.train(
        model, {"passages": language.single(rows)}, _nll, fit, hooks=hooks, name="rss",
        identity={"select": select, "longest": longest, "limit": limit},
    )  # fmt: skip
    search = SearchConfig(max_len=max_len, limit=limit)
    metrics, samples = _before_and_after(model, taught.model, questions or (), form, search)
    warnings = (
        [f"{without} of {without + len(rows)} passages hold no recurring span and were left out"] if without else []
    )
    return Result(
        models={"model": taught.model}, metrics=metrics, samples=samples, history=taught.history, cost=taught.cost,
        warnings=warnings,
    )  # fmt: skip


@method("exact-extract.tune", paper=PAPER, year=2022, source=SOURCE)
def exact_extract_tune(
    model: Model,
    questions: Sequence[QA],
    heldout: Sequence[QA] | None = None,
    *,
    examples: int = 0,
    max_len: int = 64,
    template: str = qa_prompts.TEMPLATE,
    bos: str = "auto",
    end: str = "auto",
    limit: int = 512,
    window: int = 512,
    stride: int = 120,
    fit: Fit = Fit(lr=5e-5, steps=512, rows=32, schedule="constant", optimizer="adafactor"),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Result:
    """Tune a model on a few questions and their first answers, in the form it is asked in.

        L = -(1/N) sum over the batch's N target tokens (constant first token and end too) of log p(token | prompt)

    A passage longer than the model reads is cut to the first window that holds the answer; without one the question
    is left out. The paper trains with Adafactor at a constant rate, 512 steps of 32, for 16 to 1,024 questions.

    Args:
        model: causal or seq2seq; it stays as it was, a taught copy is returned.
        questions: with at least one answer each; the first is learned.
        heldout: answered before and after, greedily and exactly.
        examples: how many questions to draw; 0 takes all.
        max_len: tokens of an answer at most, where questions are answered.
        template: prompt with {context} and {question}.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        limit: prompt tokens at most.
        window: words of a window; see exact-extract.
        stride: words between the beginnings of two windows.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a question without an answer; the loss became NaN.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    drawn = np.random.default_rng([fit.seed, 42]).permutation(len(questions))[: examples or None]
    search = SearchConfig(max_len=max_len, limit=limit, window=window, stride=stride)
    rows = list(_tuning_rows(model, [(int(i), questions[i]) for i in sorted(drawn)], form, search))
    taught = language.train(
        model, {"questions": language.single(rows)}, _nll, fit, hooks=hooks, name="tune",
        identity={"examples": examples, "template": template, "bos": bos, "end": end, "limit": limit},
    )  # fmt: skip
    metrics, samples = _before_and_after(model, taught.model, heldout or (), form, search)
    lost = len(drawn) - len(rows)
    warnings = [f"{lost} of {len(drawn)} questions left out: no window holds their answer"] if lost else []
    return Result(
        models={"model": taught.model}, metrics=metrics, samples=samples, history=taught.history, cost=taught.cost,
        warnings=warnings,
    )  # fmt: skip


def rss_rows(
    model: Model, passages: Sequence[Text], form: PromptFormat, select: str = "recurring", longest: int = spans.LONGEST,
    limit: int = 512, seed: int = 0,
) -> tuple[list[TokenizedExample], int]:  # fmt: skip
    """Recurring-span examples as token rows, one a passage (or piece of one), and how many pieces have none."""
    rng = np.random.default_rng([seed, 2021])
    place = {"recurring": spans.recurring_place, "random": spans.random_place}[select]
    forward = model.kind == "causal"
    if not forward and not form.bos:
        raise UserError("an encoder-decoder fills in at a token: give --bos, a token of its tokenizer")
    mark = "" if forward else str(model.tokenizer.convert_ids_to_tokens(form.bos[0]))
    room = min(limit, model.context) - 4  # the end, and what the tokenizer and the mark add

    def fits(text: str) -> bool:
        return len(qa_prompts.text_ids(model, text)) <= room

    rows, without = [], 0
    for passage in passages:
        for piece in spans.windows(passage.text, fits, stride=10**9):
            at = place(piece, rng, forward, longest)
            if at is None:
                without += 1
                continue
            text, span = spans.cut(piece, at) if forward else spans.masked(piece, [at], [mark])
            prompt = encode.prompt_ids(model.tokenizer, text, model.kind)
            rows.append(TokenizedExample(tuple(prompt), (*form.bos, *qa_prompts.text_ids(model, span), form.end)))
    if not rows:
        raise UserError("passages: no span recurs in any of them: give longer texts")
    return rows, without


def _tuning_rows(
    model: Model, numbered: Sequence[tuple[int, QA]], form: PromptFormat, search: SearchConfig
) -> Iterator[TokenizedExample]:
    for number, q in numbered:
        if not q.answers or not q.answers[0].strip():
            raise UserError(f"questions: record {number + 1}: no answer to learn")
        target = (*form.bos, *qa_prompts.text_ids(model, q.answers[0]), form.end)
        limit = min(search.limit, model.context - (len(target) if model.kind == "causal" else 0))
        windows = qa_prompts.encode_windows(model, form, q.context, q.question, limit, search.window, search.stride)
        holds = [w for w in windows if len(windows) == 1 or q.answers[0] in w.context]
        if holds:
            yield TokenizedExample(holds[0].prompt, target)


def _nll(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    return {"nll": language.cross_entropy(student, micro)}


def _answers(
    model: Model, questions: Sequence[QA], form: PromptFormat, decoders: Sequence[Decoder], search: SearchConfig
) -> dict[Decoder, list[list[Span]]]:
    return span_decoders.answer(model, [(q.context, q.question) for q in questions], form, decoders, search)


def _before_and_after(
    model: Model, taught: Model, questions: Sequence[QA], form: PromptFormat, search: SearchConfig
) -> tuple[dict[str, Metric], list[dict[str, str]]]:
    """Metrics of both models, and some of their greedy answers."""
    if not questions:
        return {}, []
    said = []
    for m in (model, taught):
        found = _answers(m, questions, form, ("exact", "greedy"), search)
        said.append({name: [s[0] for s in rows] for name, rows in found.items()})
    before, after = said
    samples = [
        {"part": "questions", "prompt": q.question, "wanted": " / ".join(q.answers), "before": before["greedy"][i].text,
         "after": after["greedy"][i].text}
        for i, q in enumerate(questions[:SHOWN])
    ]  # fmt: skip
    return protocols.compare(qa.compare(questions, before), qa.compare(questions, after)), samples


def _told(found: Sequence[Span], others: Mapping[str, Span], top: int) -> dict[str, Any]:
    """What is written beside a question."""
    told: dict[str, Any] = {"prediction": found[0].text, "nll": found[0].nll}
    if top > 1:
        told["spans"] = [{"text": s.text, "nll": s.nll, "score": s.score} for s in found]
    return told | {name: {"prediction": s.text, "nll": s.nll} for name, s in others.items()}
