"""Specialists: copies fine-tuned on one set of demonstrations, whose weights or outputs are then combined."""

from __future__ import annotations

from collections.abc import Sequence

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup
from didact.learn import language
from didact.learn.fit import Hook
from didact.learn.language import TrainResult
from didact.models import adapters
from didact.models.model import Model
from didact.types import Demo, Fit


def rows(model: Model, demos: Sequence[Demo], name: str = "data") -> list[TokenizedExample]:
    """Return prompts and completions as token rows; an error names the record's number in `name`."""
    return encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], model.kind, model.context, name)


def streams(model: Model, **sets: Sequence[Demo]) -> dict[str, list[ExampleGroup]]:
    """Return a stream of single rows for every named set."""
    return {name: language.single(rows(model, demos, name)) for name, demos in sets.items()}


def tune(
    model: Model, demos: Sequence[Demo], fit: Fit, hooks: Sequence[Hook], name: str, keep: bool = False
) -> TrainResult:
    """Fine-tune a copy on completions; LoRA trains a new adapter, since its weights are used in arithmetic.

    With `keep` the adapter already on the model is trained.
    """
    start = model if keep else adapters.merged(model)
    rows = streams(model, **{name: demos})
    return language.train(start, rows, language.nll, fit, hooks=hooks, name=name, keep=keep)
