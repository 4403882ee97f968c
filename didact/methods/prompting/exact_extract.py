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

SHOWN = 6  # sample answers


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
        template: prompt with {context} and {question}.
        bos: constant first token of an answer: a token, none, or auto (<extra_id_0> for seq2seq).
        end: token after an answer: a token, eos, newline, or auto (<extra_id_1> for seq2seq, else eos).
        search: lengths, windows, beams and memory of the search; of `max_len` 0 (the passage's length) is the paper's.

    Raises:
        UserError: the tokenizer lacks a token that answers begin or end with; an empty passage.
    """
    form = qa_prompts.prompt_format(model, template, bos, end)
    beside: tuple[Decoder, ...] = ("exact", "greedy", "constrained_greedy") if compare else ()
    decoders: list[Decoder] = list(dict.fromkeys((decoder, *beside)))
    asked = [(q.context, q.question) for q in questions]
    found = span_decoders.answer(model, asked, form, decoders, search)
    answers = {name: [spans[0] for spans in rows] for name, rows in found.items()}
    records = [
        replace(q, extra=q.extra | _written(found[decoder][i], {n: s[i] for n, s in answers.items() if n != decoder}))
        for i, q in enumerate(questions)
    ]
    other = "greedy" if "greedy" in answers and decoder != "greedy" else decoder
    samples = [
        {"part": "questions", "prompt": q.question, "wanted": " / ".join(q.answers), "before": answers[other][i].text,
         "after": answers[decoder][i].text}
        for i, q in enumerate(questions[:SHOWN])
    ]  # fmt: skip
    findings = {"decoder": decoder, "shown_before": other, "template": form.template, "questions": len(questions)}
    metrics = measures.metrics(None, qa.compare(questions, answers))
    return Result(records=list(records), findings=findings, metrics=metrics, samples=samples)


def _written(found: Sequence[Span], others: Mapping[str, Span]) -> dict[str, Any]:
    """What is written beside a question."""
    written: dict[str, Any] = {"prediction": found[0].text, "nll": found[0].nll}
    if len(found) > 1:
        written["spans"] = [{"text": s.text, "nll": s.nll, "score": s.score} for s in found]
    return written | {name: {"prediction": s.text, "nll": s.nll} for name, s in others.items()}
