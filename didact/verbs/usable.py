"""Records that a model cannot learn or score, told all at once before any work, by file, line and field."""

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
    """`records` whose answers fit the model, with those that do not dropped and counted, or told.

    Args:
        records: as the model will be given them.
        rows: as they were read, with their places.
        model: tells tokens and context.
        skip_bad: drop them and count them in `rows.dropped`.
        learnt: whether answers are learnt or scored; else only what a chat template leaves out is looked for.

    Raises:
        UserError: an answer is empty or longer than the context, holds a token that has no embedding, or is refused by
            the chat template, which may leave out tool calls or write both sides of a pair alike; 20 are listed.
    """
    whole = (model.embedded or len(model.tokenizer)) >= len(model.tokenizer)
    places = rows.places if len(rows.places) == len(records) else [str(rows.path)] * len(records)
    bad = {i: why for i, record in enumerate(records) if (why := _problem(record, model, whole, learnt))}
    if bad and not skip_bad:
        raise UserError(read.listed([(places[i], why) for i, why in bad.items()]))
    if bad and len(bad) == len(records):
        raise UserError(f"{rows.path}: none of {len(records)} records can be used: {next(iter(bad.values()))}")
    rows.dropped += len(bad)
    return [record for i, record in enumerate(records) if i not in bad]


def _problem(record: Record, model: Model, whole: bool, learnt: bool) -> str:
    """What is wrong with a record, its field first; nothing where it can be used. `whole`: every token is embedded."""
    shown = {}
    for field, prompt, answer in _answers(record):
        # No token is shorter than a byte, so that most answers need not be tokenised to know that they fit.
        short = not learnt or (answer.strip() and len(answer.encode()) + 8 < model.context and whole)
        if short and not isinstance(prompt, Messages):
            continue
        try:
            if learnt:
                shown[answer] = encode.row(model.tokenizer, prompt, answer, model.kind, model.context).completion
            elif answer:
                chat.dialogue(model.tokenizer, prompt, answer)
        except UserError as error:
            return f"field '{field}': {error}"
    if len(shown) == 2 and len(set(shown.values())) == 1:
        return "the tokenizer's chat template writes both sides alike: there is nothing to prefer"
    return ""


def _answers(record: Any) -> Iterable[tuple[str, str, str]]:
    if hasattr(record, "prompt"):
        for field in FIELDS:
            if isinstance(answer := getattr(record, field, None), str):
                yield field, record.prompt, answer
