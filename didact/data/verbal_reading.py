"""Inputs and targets of a verbalised model as text, and the parsing of its answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from didact.data import words as texts
from didact.data.verbal_words import Words, filled

NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def format_value(value: Any, decimals: int) -> str:
    """Format an input or target: numbers with `decimals` decimals, rows of them in brackets, texts unchanged."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Iterable):
        return "[" + ", ".join(format_value(part, decimals) for part in value) + "]"
    return f"{float(value):.{decimals}f}"


def number(text: str) -> float | None:
    """The first number in a text; None where there is none."""
    match = NUMBER.search(text)
    value = float(match[0].replace(",", "").replace("−", "-")) if match else math.nan
    return value if math.isfinite(value) else None


def _after(reply: str, mark: str) -> tuple[str, str] | None:
    """The text before and after the mark of the last line that starts with it; None if no line does."""
    if not mark:
        return "", reply.strip()
    matches = list(re.finditer(rf"^[ \t#*]*{re.escape(mark)}[ \t*]*", reply, re.MULTILINE | re.IGNORECASE))
    return (reply[: matches[-1].start()].strip(), reply[matches[-1].end() :].strip()) if matches else None


class Proposal(NamedTuple):
    """New descriptions, the reasoning before them, and the whole answer."""

    text: str
    why: str
    reply: str


def proposal(reply: str, words: Words) -> Proposal | None:
    """Parse an optimiser's answer; None if it proposes nothing."""
    parts = _after(reply, words.descriptions)
    if parts is None or not (text := parts[1].strip().strip("[]").strip()):
        return None
    return Proposal(text, parts[0].removeprefix("Reasoning:").strip(), reply)


class Targets:
    """Targets of one kind, `numbers` or labels; `texts` are the formatted targets."""

    def __init__(self, values: Sequence[Any], decimals: int) -> None:
        self.decimals = decimals
        parsed = [_exact(value) for value in values]
        self.numbers = bool(values) and all(value is not None for value in parsed)
        self.values = [value for value in parsed if value is not None] if self.numbers else []
        self.texts = [
            format_value(value if self.numbers else texts.key(str(value)), decimals)
            for value in (self.values or values)
        ]
        self.labels = [] if self.numbers else sorted(set(self.texts))

    @property
    def usual(self) -> str:
        """The default prediction: the mean, or the most common label."""
        if self.numbers:
            return format_value(sum(self.values) / len(self.values), self.decimals)
        return Counter(self.texts).most_common(1)[0][0]

    def form(self, words: Words) -> str:
        """The description of an output's form, for the prompt."""
        kind = words.numbers if self.numbers else words.labels
        output = filled(kind, decimals=str(self.decimals), labels=", ".join(self.labels))
        return filled(words.form, what=output)

    def read(self, reply: str, words: Words) -> str | None:
        """Parse the output in a learner's answer, formatted as a target; None if there is none."""
        parts = _after(reply, words.output)
        if parts is None:
            return None
        line = parts[1].partition("\n")[0]
        if self.numbers:
            value = number(line)
            return None if value is None else format_value(value, self.decimals)
        answer = texts.key(line).strip("[]\"'`*. ").casefold()
        return next((label for label in self.labels if texts.key(label).casefold() == answer), None)

    def loss(self, outputs: Sequence[str | None], items: Sequence[int]) -> tuple[float, int]:
        """Mean squared error, or share of wrong labels, and the number of unreadable outputs: these count as the mean
        target, or as wrong."""
        unread = sum(text is None for text in outputs)
        if self.numbers:
            predictions = [float(self.usual if text is None else text) for text in outputs]
            errors = [(a - self.values[int(i)]) ** 2 for a, i in zip(predictions, items, strict=True)]
        else:
            errors = [float(text != self.texts[int(i)]) for text, i in zip(outputs, items, strict=True)]
        return sum(errors) / len(errors), unread


def _exact(value: Any) -> float | None:
    """The value of a number, or of a text that is nothing else; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
