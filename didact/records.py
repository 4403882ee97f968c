"""Records: one line of what the user has, each kind a class. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

REASONING = ("reasoning_content", "thinking", "reasoning")


class Messages(str):
    """A conversation as a prompt: as text `User: ...`, a line a turn, and `Assistant:` for the answer to follow.

    Being text it goes wherever a prompt goes; `data.encode` renders its `turns` by the tokenizer's
    own chat template where there is one.
    """

    turns: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]

    def __new__(cls, turns: Iterable[Mapping[str, Any]], tools: Iterable[Mapping[str, Any]] = ()) -> Messages:  # noqa: D102  (the class says)
        kept, offered = tuple(dict(turn) for turn in turns), tuple(dict(tool) for tool in tools)
        said = "".join(f"{turn['role'].capitalize()}: {Reply(turn)}\n" for turn in kept)
        made = super().__new__(cls, (f"Tools: {_json(offered)}\n" if offered else "") + said + "Assistant:")
        made.turns, made.tools = kept, offered
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # so that copies and pickles keep the turns
        return (self.turns, self.tools)


class Reply(str):
    """An assistant turn as a completion: as text its thought, its content, its tool calls as JSON; `turn` is all."""

    turn: dict[str, Any]

    def __new__(cls, turn: Mapping[str, Any]) -> Reply:  # noqa: D102  (the class says)
        calls, before = turn.get("tool_calls"), thought(turn)
        said = "\n".join(filter(None, (turn["content"], _json(calls) if calls else "")))
        made = super().__new__(cls, f"<think>\n{before}\n</think>\n\n{said}" if before else said)
        made.turn = dict(turn)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.turn,)


def thought(turn: Mapping[str, Any]) -> str:
    """What a turn says to itself before its content, under any of the names that services have for it."""
    return next((str(turn[name]) for name in REASONING if turn.get(name)), "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of what the user has. Fields a record does not know are kept in `extra`."""

    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Record):
    """A part of a document with its own score."""

    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Record):
    """A document. `segments` are its parts in order, each scored; joined they are the text."""

    text: str
    metadata: dict[str, Any] | None = None
    score: float | None = None
    source: str | None = None
    segments: list[Segment] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo(Record):
    """A demonstration: what was asked and what a good answer is.

    `paraphrased` is another wording of the completion, `perturbed` are wrong completions in the
    same wording, `alternate` is what to answer instead (a refusal, say).
    """

    prompt: str
    completion: str
    choices: list[str] | None = None
    instruction: str | None = None
    task: str | None = None
    explanation: str | None = None
    context: str | None = None
    answers: list[str] | None = None
    paraphrased: str | None = None
    perturbed: list[str] | None = None
    alternate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QA(Record):
    """A question about a passage, with every accepted answer."""

    context: str
    question: str
    answers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Record):
    """A small supervised problem: rows `x` (n, d) with targets `y` (n,) or (n, o), and perhaps one query."""

    x: list[Any]
    y: list[Any]
    task: str | None = None
    x_query: list[Any] | None = None
    y_query: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference(Record):
    """Two completions of one prompt, the first preferred."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Record):
    """A completion that was found good or bad, without another beside it."""

    prompt: str
    completion: str
    label: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Record):
    """A completion with a number; higher is better."""

    prompt: str
    completion: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique(Record):
    """A completion, what someone said about it, and perhaps the completion mended accordingly."""

    prompt: str
    completion: str
    feedback: str
    refinement: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Record):
    """One step of a trajectory: what was seen, what was done then, and what that was worth."""

    observation: Any
    action: Any
    reward: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Record):
    """An episode: its steps in order, and what was seen after the last.

    `goal` is what was asked for (nobody may have asked), `achieved` what was reached, in the same form.
    """

    task: str
    steps: list[Step]
    final_observation: Any
    goal: Any = None
    achieved: Any = None
    success: bool | None = None
    terminated: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexeme(Record):
    """A word of a language for a meaning (`synset`) that other languages have words for too."""

    synset: str
    language: str
    lemma: str
    gloss: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Record):
    """A sentence and its translation."""

    source: str
    target: str
    source_lang: str | None = None
    target_lang: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage(Record):
    """A text to be looked up."""

    text: str
    title: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Record):
    """A configuration that was tried, and what it scored; no score where it failed, or is still to be tried."""

    config: dict[str, Any]
    score: float | None = None


RECORDS: dict[str, type[Record]] = {
    "text": Text,
    "demo": Demo,
    "qa": QA,
    "example": Example,
    "preference": Preference,
    "judged": Judged,
    "scored": Scored,
    "critique": Critique,
    "trajectory": Trajectory,
    "lexeme": Lexeme,
    "parallel": Parallel,
    "passage": Passage,
    "trial": Trial,
}


def as_row(record: Record) -> dict[str, Any]:
    """A record as it would stand in a JSONL file."""
    row = {f.name: _as_json(getattr(record, f.name)) for f in dataclasses.fields(record) if f.name != "extra"}
    return {k: v for k, v in row.items() if v is not None} | record.extra


def _as_json(value: Any) -> Any:
    """A field's value as JSON has it: conversations as their turns, steps and segments as objects."""
    if isinstance(value, Messages):
        return list(value.turns)
    if isinstance(value, Reply):
        return [value.turn]
    if isinstance(value, list) and value and isinstance(value[0], Record):
        return [as_row(item) for item in value]
    return value
