"""Rows that train a model to extract answers from its context: recurring spans of raw text, and questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from didact.data import encode, spans
from didact.data.encode import TokenizedExample
from didact.infer import qa_prompts
from didact.infer.qa_prompts import PromptFormat
from didact.infer.span_decoders import SearchConfig
from didact.models.model import Model
from didact.types import QA, Text, UserError


def rss_rows(
    model: Model, passages: Sequence[Text], form: PromptFormat, select: str = "recurring", longest: int = spans.LONGEST,
    limit: int = 512, seed: int = 0,
) -> tuple[list[TokenizedExample], int]:  # fmt: skip
    """Return recurring-span examples as rows, one per passage (or piece of one), and the number of pieces without."""
    rng = np.random.default_rng([seed, 2021])
    find_place = {"recurring": spans.recurring_place, "random": spans.random_place}[select]
    forward = model.kind == "causal"
    if not forward and not form.bos:
        raise UserError("an encoder-decoder fills in a span at a mask token: give --bos, a token of its tokenizer")
    mask = "" if forward else str(model.tokenizer.convert_ids_to_tokens(form.bos[0]))
    room = min(limit, model.context) - 4  # for the end token, the mask and what the tokenizer adds

    def fits(text: str) -> bool:
        return len(qa_prompts.text_ids(model, text)) <= room

    rows, without = [], 0
    for passage in passages:
        for piece in spans.windows(passage.text, fits, stride=10**9):
            place = find_place(piece, rng, forward, longest)
            if place is None:
                without += 1
                continue
            text, span = spans.cut(piece, place) if forward else spans.masked(piece, [place], [mask])
            prompt = encode.prompt_ids(model.tokenizer, text, model.kind)
            rows.append(TokenizedExample(tuple(prompt), (*form.bos, *qa_prompts.text_ids(model, span), form.end)))
    if not rows:
        raise UserError("passages: no span recurs in any of them: give longer texts")
    return rows, without


def tuning_rows(
    model: Model, numbered: Sequence[tuple[int, QA]], form: PromptFormat, search: SearchConfig
) -> Iterator[TokenizedExample]:
    """Yield rows of numbered questions with their first answers; skip questions whose answer is in no window.

    Raises:
        UserError: a question without an answer.
    """
    for number, q in numbered:
        if not q.answers or not q.answers[0].strip():
            raise UserError(f"questions: record {number + 1}: no answer to learn")
        target = (*form.bos, *qa_prompts.text_ids(model, q.answers[0]), form.end)
        limit = min(search.limit, model.context - (len(target) if model.kind == "causal" else 0))
        windows = qa_prompts.encode_windows(model, form, q.context, q.question, limit, search.window, search.stride)
        matches = [w for w in windows if len(windows) == 1 or q.answers[0] in w.context]
        if matches:
            yield TokenizedExample(matches[0].prompt, target)
