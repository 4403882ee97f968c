"""Checks for records that a model cannot train on or score, all reported before any work by file, line and field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from didact.data import chat, encode, read
from didact.data.read import Records
from didact.models.model import Model
from didact.types import Messages, Record, UserError

FIELDS = ("completion", "chosen", "rejected")


def usable(
    records: Sequence[Record], rows: Records[Any], model: Model, skip_bad: bool, learnt: bool = True
) -> list[Record]:
    """Return the records whose answers fit the model; drop and count the others, or refuse them.

    Args:
        records: the records as the model gets them.
        rows: the records as they were read, with their places.
        model: its tokenizer and context decide what fits.
        skip_bad: drop bad records and count them in `rows.dropped`.
        learnt: whether answers are trained on or scored; else only what a chat template leaves out is checked.

    Raises:
        UserError: an answer is empty or longer than the context, has a token without an embedding, or is refused by
            the chat template, which may leave out tool calls or render both sides of a pair alike; 20 are listed.
    """
    all_embedded = (model.embedded or len(model.tokenizer)) >= len(model.tokenizer)
    places = rows.places if len(rows.places) == len(records) else [str(rows.path)] * len(records)
    bad = {i: problem for i, record in enumerate(records) if (problem := _problem(record, model, all_embedded, learnt))}
    if bad and not skip_bad:
        raise UserError(read.listed([(places[i], problem) for i, problem in bad.items()]))
    if bad and len(bad) == len(records):
        raise UserError(f"{rows.path}: none of {len(records)} records can be used: {next(iter(bad.values()))}")
    rows.dropped += len(bad)
    return [record for i, record in enumerate(records) if i not in bad]


def _problem(record: Record, model: Model, all_embedded: bool, learnt: bool) -> str:
    """Return what is wrong with a record, its field first; empty if it can be used."""
    rendered = {}
    for field, prompt, answer in _answers(record):
        # No token is shorter than a byte: most answers are known to fit without being tokenised.
        short = not learnt or (answer.strip() and len(answer.encode()) + 8 < model.context and all_embedded)
        if short and not isinstance(prompt, Messages):
            continue
        try:
            if learnt:
                rendered[answer] = encode.row(model.tokenizer, prompt, answer, model.kind, model.context).completion
            elif answer:
                chat.dialogue(model.tokenizer, prompt, answer)
        except UserError as error:
            return f"field '{field}': {error}"
    if len(rendered) == 2 and len(set(rendered.values())) == 1:
        return "the tokenizer's chat template renders both sides alike: there is nothing to prefer"
    return ""


def _answers(record: Any) -> Iterable[tuple[str, str, str]]:
    if hasattr(record, "prompt"):
        for field in FIELDS:
            if isinstance(answer := getattr(record, field, None), str):
                yield field, record.prompt, answer
