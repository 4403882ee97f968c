"""Questions about passages, answered greedily and by the likeliest span: F1, exact match, and how extractive."""

from __future__ import annotations

from didact.evaluate import qa
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.infer import qa_prompts, span_decoders
from didact.infer.span_decoders import SearchConfig
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """See `evaluate.qa.compare`; with the prompt format and the search limits of training."""
    options, questions = scoring.options, scoring.of("qa")
    format_ = {name: options[name] for name in ("template", "bos", "end") if name in options}
    search = options.get("search") or SearchConfig(**{k: options[k] for k in ("limit",) if k in options})
    form = qa_prompts.prompt_format(model, **format_)
    pairs = [(q.context, q.question) for q in questions]
    spans_by_decoder = span_decoders.answer(model, pairs, form, ("exact", "greedy"), search)
    return qa.compare(questions, {name: [spans[0] for spans in rows] for name, rows in spans_by_decoder.items()})


PROTOCOL = Protocol(kind="qa", primary="exact_f1", score=score)
