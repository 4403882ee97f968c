"""Field names and layouts of other data sets, and their conversion to ours. Imports no torch."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from didact.data import words
from didact.types import UserError

HALVES = re.compile("[\ud800-\udfff]")  # halves of surrogate pairs
# Our fields' names in other data sets, most likely first: suggested as --map.
SYNONYMS = {
    "prompt": ("question", "instruction", "input", "query", "problem", "source", "text", "sentence", "utterance"),
    "completion": ("answer", "output", "response", "solution", "target", "summary"),
    "chosen": ("preferred", "winner", "better"),
    "rejected": ("dispreferred", "loser", "worse"),
    "text": ("content", "document", "body", "sentence"),
    "messages": ("conversations", "conversation", "dialogue", "chat"),
    "label": ("kto_tag",),
    "feedback": ("critique", "comment"), "refinement": ("revision", "edited"), "score": ("reward", "rating"),
    "paraphrased": ("paraphrased_answer",),
    "perturbed": ("perturbed_answer",),
}  # fmt: skip
# Texts and their class labels: read as demonstrations whose choices are the labels of the file.
TEXTS = ("text", "sentence", "utterance", "tweet", "review", "question", "query")
LABELS = (
    "label", "label_text", "category", "intent", "class", "coarse", "fine", "coarse_label", "fine_label",
    "label_coarse", "label_fine", "label-coarse", "label-fine", "sentiment", "topic", "emotion",
)  # fmt: skip
OTHERS = ("messages", "instruction", "chosen", "answers")  # beside one of these a label is not the answer
MOST_CHOICES = 256


def renamed(present: Iterable[str], needed: Iterable[str]) -> dict[str, str]:
    """Return `{our name: the file's}` for needed fields that a file has under another common name."""
    lower = {name.lower(): name for name in present}
    names = {ours: next((lower[t] for t in _names(ours) if t in lower), None) for ours in needed if ours not in lower}
    fits = {ours: theirs for ours, theirs in names.items() if theirs}
    return {
        ours: theirs for ours, theirs in fits.items() if list(fits.values()).index(theirs) == list(fits).index(ours)
    }


def _names(ours: str) -> tuple[str, ...]:
    return SYNONYMS.get(ours, ()) + (LABELS if ours == "completion" else ())


def classes(completions: Sequence[str]) -> list[str]:
    """The distinct labels of classified texts; empty if too many, or more than one for every two texts."""
    distinct = words.distinct(sorted(completions))
    return distinct if 2 <= len(distinct) <= MOST_CHOICES and 2 * len(distinct) <= len(completions) else []


def missing(name: str, row: Mapping[str, Any], needed: Iterable[str]) -> str:
    """The error message for a line without a required field: the fields it has, and the --map that would fit."""
    fits = renamed(row, needed)
    present = f"; this line has {', '.join(map(repr, list(row)[:6]))}" if row else ""
    mapping = ",".join(f"{ours}={theirs}" for ours, theirs in fits.items()) if name in fits else f"{name}=YOUR_FIELD"
    return f"field '{name}' is missing{present} (--map {mapping} renames)"


def labels(row: Mapping[str, Any], rename: Mapping[str, str]) -> list[str]:
    """The fields that may hold a row's class label, if it can be read as a demonstration."""
    if (field := rename.get("completion")) or "completion" in row:
        return [field] if field in LABELS and field in row else []
    has_text = "prompt" in rename or any(name in row for name in ("prompt", *TEXTS))
    if not has_text or any(name in row for name in (*OTHERS, *SYNONYMS["completion"], *SYNONYMS["messages"])):
        return []
    candidates = [name for name in LABELS if name in row]
    return ["label_text"] if "label_text" in candidates else candidates


def label_of(row: Mapping[str, Any], rename: Mapping[str, str]) -> str | None:
    """The field that holds a row's class label; None if there is none.

    Raises:
        UserError: several fields may hold it.
    """
    candidates = labels(row, rename)
    if len(candidates) > 1:
        names = ", ".join(map(repr, candidates))
        raise UserError(f"several fields may be the label, {names}: choose one with --map completion={candidates[0]}")
    return next(iter(candidates), None)


def labelled(values: dict[str, Any], rename: Mapping[str, str]) -> None:
    """Turn a text and its label into prompt and completion, an integer label into its digits; in place."""
    name = label_of(values, rename)
    if name is None:
        return
    if "prompt" not in values and "prompt" not in rename:
        text = next((t for t in TEXTS if t in values), None)
        values |= {"prompt": values.pop(text)} if text else {}
    label = values.pop(name)
    values[rename.get("completion", "completion")] = str(label) if type(label) is int else label


def instructed(values: dict[str, Any], schema: Mapping[str, Any], rename: Mapping[str, str]) -> None:
    """Turn instruction and input (Alpaca) or context (Dolly) into the prompt, the output into its completion; in place.

    Also if the prompt is renamed from the instruction: its input or context is part of the prompt then too.
    """
    names, mapped = {name.lower(): name for name in reversed(values)}, set(rename.values())
    field = names.get("instruction", "instruction")
    instruction = values.get(field)
    if "prompt" not in schema or not isinstance(instruction, str) or rename.get("prompt", field) != field:
        return
    if "prompt" in values or ("messages" in values and "completion" in schema):
        return
    del values[field]
    inputs = [names[n] for n in ("input", "context") if n in names and (n == "input" or "completion" in schema)]
    extra = next((n for n in inputs if n not in mapped and isinstance(values[n], str) and values[n].strip()), None)
    values["prompt"] = instruction if extra is None else f"{instruction}\n\n{values.pop(extra)}"
    if inputs and values.get(inputs[0]) == "":
        del values[inputs[0]]
    if "completion" in schema and "completion" not in values and "completion" not in rename:
        output = next((names[n] for n in ("output", "response") if n in names), None)
        values |= {"completion": values.pop(output)} if output else {}


def points(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Turn the points of a function into prompt and completion, or configuration and score; in place.

    A point is `x` with a number as its `y`, or a prompt and a completion that are both numbers, which become text.
    """
    source, target = ("config", "score") if "config" in schema else ("prompt", "completion")
    kind = dict if source == "config" else str
    x, y = values.get("x"), values.get("y")
    if source not in values and target not in values and _number(y) and (isinstance(x, kind) or _number(x)):
        values |= {source: values.pop("x"), target: values.pop("y")}
    elif not (_number(values.get(source)) and _number(values.get(target))):
        return
    if kind is str:
        values |= {name: v if isinstance(v := values[name], str) else json.dumps(v) for name in (source, target)}


def _number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def judged(values: Mapping[str, Any]) -> None:
    """Refuse an answer labelled bad as a demonstration.

    Raises:
        UserError: the answer is labelled bad.
    """
    if any(values.get(name) is False for name in ("label", "kto_tag")):
        raise UserError(
            "this answer is labelled bad ('label' is false) and cannot be a demonstration: give only good ones, or the "
            "file as --judged to a method that takes both (kto)"
        )


def answers(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Turn answers with their positions (SQuAD) into a list of texts; in place."""
    value = values.get("answers")
    if "answers" in schema and isinstance(value, dict) and isinstance(value.get("text"), list):
        values["answers"] = value["text"]


def sound(name: str, value: Any, numbers: bool = True) -> None:
    """Refuse NaN, infinities, integers too large for a float, and half surrogate pairs anywhere inside a value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend([*item, *item.values()])
        elif isinstance(item, str) and HALVES.search(item):
            raise UserError(f"field {name!r} holds half a surrogate pair, which no tokenizer takes; fix the escape")
        elif numbers and isinstance(item, int | float) and not abs(item) <= sys.float_info.max:
            raise UserError(f"field '{name}' holds NaN or an infinity; remove the line or fix the number")
