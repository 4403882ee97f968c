"""Exact span decoding: the likeliest span of a passage, and how far greedy decoding is from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from didact.evaluate import measures, qa
from didact.infer import qa_prompts, span_decoders
from didact.infer.span_decoders import Decoder, SearchConfig
from didact.infer.span_scores import Span
from didact.models.model import Model
from didact.registry import method
from didact.types import QA, Result

SHOWN = 6  # sample answers in the report


@method(
    "exact-extract",
    paper="How Optimal is Greedy Decoding for Extractive Question Answering?",
    year=2022,
    source="arXiv:2108.05857",
    gives=("records", "findings"),
    capabilities=("logits",),
)
def exact_extract(
    model: Model,
    questions: Sequence[QA],
    *,
    decoder: Decoder = "exact",
    compare: bool = True,
    template: str = qa_prompts.TEMPLATE,
    bos: str = "auto",
    end: str = "auto",
    search: SearchConfig = SearchConfig(),
) -> Result:
    """Answer questions by the likeliest span of their passages, and measure how far greedy decoding is from it.

    With x_1..x_n the passage's tokens and X the prompt, the answer is the span that minimises

        total(i, j) = sum_{k=i..j} -log P(x_k | X, x_i..x_{k-1})  -  log P(end | X, x_i..x_j)

    exactly: one decoder row for each of the n starts scores all n(n+1)/2 spans, because the logits after x_j score both
    the next token and the end. It is compared with greedy decoding and with greedy decoding along the passage, by two
    diagnostics: extractiveness, the share of greedy answers that occur in the passage, and optimality, the share that
    are its likeliest span. A likelier span need not be a better answer: that is what F1 measures.

    Args:
        model: causal or seq2seq; its tokenizer has the tokens that begin and end answers.
        questions: questions, passages and accepted answers (an empty list if none is known).
        decoder: decoder of the recorded answers: exact; greedy; constrained_greedy (only along the passage); beam.
        compare: run exact, greedy and constrained greedy side by side.
        template: prompt with {context} and {question}.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        search: lengths, windows, beams and memory of the search; `max_len` 0 (the passage's length) is the paper's.

    Raises:
        UserError: the tokenizer lacks a token that answers begin or end with; an empty passage.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    compared: tuple[Decoder, ...] = ("exact", "greedy", "constrained_greedy") if compare else ()
    decoders: list[Decoder] = list(dict.fromkeys((decoder, *compared)))
    queries = [(q.context, q.question) for q in questions]
    results = span_decoders.answer(model, queries, form, decoders, search)
    answers = {name: [spans[0] for spans in rows] for name, rows in results.items()}
    records = [
        replace(q, extra=q.extra | _fields(results[decoder][i], {n: s[i] for n, s in answers.items() if n != decoder}))
        for i, q in enumerate(questions)
    ]
    base = "greedy" if "greedy" in answers and decoder != "greedy" else decoder
    samples = [
        {"part": "questions", "prompt": q.question, "wanted": " / ".join(q.answers), "before": answers[base][i].text,
         "after": answers[decoder][i].text}
        for i, q in enumerate(questions[:SHOWN])
    ]  # fmt: skip
    findings = {"decoder": decoder, "shown_before": base, "template": form.template, "questions": len(questions)}
    metrics = measures.metrics(None, qa.compare(questions, answers))
    return Result(records=list(records), findings=findings, metrics=metrics, samples=samples)


def _fields(found: Sequence[Span], others: Mapping[str, Span]) -> dict[str, Any]:
    """Return the fields that are added to a question's record."""
    fields: dict[str, Any] = {"prediction": found[0].text, "nll": found[0].nll}
    if len(found) > 1:
        fields["spans"] = [{"text": s.text, "nll": s.nll, "score": s.score} for s in found]
    return fields | {name: {"prediction": s.text, "nll": s.nll} for name, s in others.items()}
