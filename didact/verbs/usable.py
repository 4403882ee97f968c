"""Records that a model cannot learn or score, told all at once before any work, by file, line and field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from didact.data import encode, read
from didact.data.read import Records
from didact.models.model import Model
from didact.types import Messages, Record, UserError

FIELDS = ("completion", "chosen", "rejected")


def usable(records: Sequence[Record], rows: Records[Any], model: Model, skip_bad: bool) -> list[Record]:
    """`records` whose answers fit the model, with those that do not dropped and counted, or told.

    Args:
        records: as the model will be given them.
        rows: as they were read, with their places.
        model: tells tokens and context.
        skip_bad: drop them and count them in `rows.dropped`.

    Raises:
        UserError: an answer is empty or longer than the context, holds a token that has no embedding, or is refused by
            the chat template; the first 20 are listed.
    """
    whole = (model.embedded or len(model.tokenizer)) >= len(model.tokenizer)
    places = rows.places if len(rows.places) == len(records) else [str(rows.path)] * len(records)
    bad = {i: why for i, record in enumerate(records) if (why := _problem(record, model, whole))}
    if bad and not skip_bad:
        raise UserError(read.listed([f"{places[i]}: {why}" for i, why in bad.items()]))
    if bad and len(bad) == len(records):
        raise UserError(f"{rows.path}: none of {len(records)} records can be used: {next(iter(bad.values()))}")
    rows.dropped += len(bad)
    return [record for i, record in enumerate(records) if i not in bad]


def _problem(record: Record, model: Model, whole: bool) -> str:
    """What is wrong with a record, its field first; nothing where it can be used. `whole`: every token is embedded."""
    for field, prompt, answer in _answers(record):
        # No token is shorter than a byte, so that most answers need not be tokenised to know that they fit.
        short = len(answer.encode()) + 8 < model.context
        if answer.strip() and short and whole and not isinstance(prompt, Messages):
            continue
        try:
            encode.row(model.tokenizer, prompt, answer, model.kind, model.context)
        except UserError as error:
            return f"field '{field}': {error}"
    return ""


def _answers(record: Any) -> Iterable[tuple[str, str, str]]:
    if hasattr(record, "prompt"):
        for field in FIELDS:
            if isinstance(answer := getattr(record, field, None), str):
                yield field, record.prompt, answer
