"""Records: one line of a data file, a class for each kind. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

REASONING = ("reasoning_content", "thinking", "reasoning")


class Messages(str):
    """A conversation as a prompt: its text is `User: ...`, one line per turn, then `Assistant:` for the answer.

    It is a `str` and goes wherever a prompt goes; `data.encode` renders its `turns` with the tokenizer's
    own chat template where there is one.
    """

    turns: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]

    def __new__(cls, turns: Iterable[Mapping[str, Any]], tools: Iterable[Mapping[str, Any]] = ()) -> Messages:  # noqa: D102  (the class says)
        turn_rows, tool_rows = tuple(dict(turn) for turn in turns), tuple(dict(tool) for tool in tools)
        text = "".join(f"{turn['role'].capitalize()}: {Reply(turn)}\n" for turn in turn_rows)
        prompt = super().__new__(cls, (f"Tools: {_json(tool_rows)}\n" if tool_rows else "") + text + "Assistant:")
        prompt.turns, prompt.tools = turn_rows, tool_rows
        return prompt

    def __getnewargs__(self) -> tuple[Any, ...]:  # so that copies and pickles keep the turns
        return (self.turns, self.tools)


class Reply(str):
    """An assistant turn as a completion: its text is reasoning, content, tool calls (JSON); `turn` has all fields."""

    turn: dict[str, Any]

    def __new__(cls, turn: Mapping[str, Any]) -> Reply:  # noqa: D102  (the class says)
        calls, reasoning = turn.get("tool_calls"), thought(turn)
        text = "\n".join(filter(None, (turn["content"], _json(calls) if calls else "")))
        reply = super().__new__(cls, f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text)
        reply.turn = dict(turn)
        return reply

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.turn,)


def thought(turn: Mapping[str, Any]) -> str:
    """Return the reasoning before a turn's content, under any of the field names that services use; empty if none."""
    return next((str(turn[name]) for name in REASONING if turn.get(name)), "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of a data file. Fields that the class does not define are kept in `extra`."""

    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Record):
    """A part of a document with its own score."""

    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Record):
    """A document. `segments` are its parts in order, each with a score; joined they give the text."""

    text: str
    metadata: dict[str, Any] | None = None
    score: float | None = None
    source: str | None = None
    segments: list[Segment] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo(Record):
    """A demonstration: a prompt and a good answer to it.

    `paraphrased` is another wording of the completion, `perturbed` are wrong completions in the
    same wording, `alternate` is the answer to give instead (a refusal, say).
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
    """A completion labelled good or bad, without another to compare it with."""

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
    """A completion, feedback on it, and perhaps a refinement that follows the feedback."""

    prompt: str
    completion: str
    feedback: str
    refinement: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Record):
    """One step of a trajectory: the observation, the action taken, and its reward."""

    observation: Any
    action: Any
    reward: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Record):
    """An episode: its steps in order, and the observation after the last.

    `goal` is the goal that was set (there may be none), `achieved` what was reached, in the same form.
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
    """A word of one language for a meaning (`synset`) that other languages have words for too."""

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
    """A text for retrieval."""

    text: str
    title: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Record):
    """A configuration that was tried, and its score; no score if it failed or is still to be tried."""

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
    """Return a record as a row of a JSONL file."""
    row = {f.name: _as_json(getattr(record, f.name)) for f in dataclasses.fields(record) if f.name != "extra"}
    return {k: v for k, v in row.items() if v is not None} | record.extra


def _as_json(value: Any) -> Any:
    """Return a field's value as JSON: conversations as their turns, steps and segments as objects."""
    if isinstance(value, Messages):
        return list(value.turns)
    if isinstance(value, Reply):
        return [value.turn]
    if isinstance(value, list) and value and isinstance(value[0], Record):
        return [as_row(item) for item in value]
    return value
