"""Contexts: what a judgement between two completions goes by. Pure: records in, records out.

A reversal pair is two records of one prompt and the same two completions, which two contexts put in opposite orders.
Where all records come so, nothing that ignores the context can be right more than half of the time.

Source: Pitis et al. 2024, arXiv:2407.14916.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from didact.types import Preference, UserError

TEMPLATE = "{prompt}\n\nJudge the answer by this: {context}\n\n"
NEGATED = "the opposite of this: {context}"
SIDES = ("x", "y")  # under x response a is preferred, under y response b
SORTS = ("criteria", "scenario")


def asked(prompt: str, context: str | None, template: str = TEMPLATE) -> str:
    """A prompt that says what to judge by; without a context it stays as it was.

    The context stands behind the prompt: what is too long loses its beginning.
    """
    return template.format(prompt=prompt, context=context) if context else prompt


def checked(template: str, fields: Sequence[str] = ("prompt", "context"), what: str = "template") -> str:
    """The same template.

    Raises:
        UserError: it has not these fields, or others.
    """
    with contextlib.suppress(KeyError, IndexError, ValueError):
        made = template.format(**{name: f"\0{name}" for name in fields})
        if all(f"\0{name}" in made for name in fields):
            return template
    names = " and ".join(f"{{{name}}}" for name in fields)
    raise UserError(f"{what} {template!r}: it needs the field{'s' * (len(fields) > 1)} {names}, and has no others")


def both_ways(row: Any) -> Iterator[Any]:
    """A row of a file as rows of preferences: one as the RPR data have them is up to four, all others stay.

    RPR: `prompt, response_a, response_b`, and `criteria_x, criteria_y, scenario_x, scenario_y` as there are; response a
    is preferred under every `_x`, response b under every `_y`.
    """
    if not isinstance(row, Mapping) or not {"response_a", "response_b"} <= set(row) or "chosen" in row:
        yield row
        return
    found = [(sort, side) for sort in SORTS for side in SIDES if row.get(f"{sort}_{side}")]
    used = {"response_a", "response_b", *(f"{sort}_{side}" for sort in SORTS for side in SIDES)}
    rest = {k: v for k, v in row.items() if k not in used}
    for sort, side in found:
        first, second = ("response_a", "response_b") if side == "x" else ("response_b", "response_a")
        yield rest | {
            "chosen": row[first], "rejected": row[second], "context": row[f"{sort}_{side}"], "sort": sort,
        }  # fmt: skip
    if not found:
        yield row


def reversals(preferences: Sequence[Preference]) -> tuple[list[tuple[int, int]], list[int]]:
    """Which records are two of a reversal pair, and which have no partner; by their places."""
    waiting: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    pairs: list[tuple[int, int]] = []
    partnered: set[int] = set()
    for i, p in enumerate(preferences):
        if not p.context:
            continue
        if other := waiting[p.prompt, p.rejected, p.chosen]:
            pairs.append((other.pop(0), i))
            partnered.update(pairs[-1])
        else:
            waiting[p.prompt, p.chosen, p.rejected].append(i)
    return pairs, [i for i in range(len(preferences)) if i not in partnered]
