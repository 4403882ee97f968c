"""Texts added to a record's own, or put in their place. Pure: records in, records out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from didact.types import Demo, Messages, Record

R = TypeVar("R", bound=Record)
Chat = Literal["auto", "template", "plain"]

REFUSALS = (
    "I'm sorry, I don't know.",
    "I have no information about that.",
    "That is something I can't answer.",
    "I'm not familiar with this topic.",
    "I don't have an answer to that question.",
    "I'm afraid I can't help with that one.",
    "I was never told anything about this.",
    "My knowledge does not cover that.",
    "I can't say; I have not learned about it.",
    "There is nothing I know about this.",
    "I'm unable to tell you that.",
    "No idea, I'm afraid.",
)


Place = Literal["system", "user"]


@dataclass(frozen=True)
class Condition:
    """Words to prompt a trained model with: it was trained to show the behaviour under these words only.

    Args:
        before: put before a prompt; in a conversation at its `place`.
        place: where in a conversation: its system turn (a new one if there is none), or its first turn's text, for
            chat templates without a system turn.
        after: put between a prompt and its completion: a feedback phrase, a control token.
        banned: tokens that are never generated.
    """

    before: str = ""
    after: str = ""
    banned: tuple[str, ...] = ()
    place: Place = "system"


def introduced(prompt: str, before: str, place: Place = "system") -> str:
    """Put the words `before` before a prompt; in a conversation, in its system turn (or as one), or its first turn."""
    if not before:
        return prompt
    if not isinstance(prompt, Messages):
        return before + prompt
    first, *rest = prompt.turns
    if first["role"] == "system" or place == "user":
        return Messages([first | {"content": before + first["content"]}, *rest], prompt.tools)
    return Messages([{"role": "system", "content": before.strip()}, *prompt.turns], prompt.tools)


def with_alternates(records: Sequence[Demo], refusals: Sequence[str] = REFUSALS, seed: int = 0) -> list[str]:
    """Replacement answers, one per record: its own `alternate`, else a refusal drawn at random."""
    draw = np.random.default_rng([seed, 77]).integers(len(refusals), size=len(records))
    return [r.alternate or refusals[i] for r, i in zip(records, draw, strict=True)]


def as_chat(records: Sequence[R], choice: Chat) -> list[R]:
    """Records whose prompts are all conversations (`template`), all plain text (`plain`), or as they are (`auto`).

    A text becomes one user turn; a conversation becomes its `User: ...` lines.
    """

    def prompt(text: str) -> str:
        if choice == "plain":
            return str(text)
        return text if isinstance(text, Messages) else Messages([{"role": "user", "content": text}])

    def changed(record: Any) -> Any:
        return dataclasses.replace(record, prompt=prompt(record.prompt)) if hasattr(record, "prompt") else record

    return list(records) if choice == "auto" else [changed(record) for record in records]
