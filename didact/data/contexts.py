"""Preferences under a context, which states the criterion of the judgement. Pure: records in, records out.

A reversal pair is two records with the same prompt and completions, whose contexts put them in opposite orders.
On records that all come in such pairs, a judge that ignores the context is right half of the time at most.

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


def with_context(prompt: str, context: str | None, template: str = TEMPLATE) -> str:
    """Add the context to a prompt as the criterion of the judgement; without a context the prompt stays.

    The context comes after the prompt, since text that is too long is cut at its beginning.
    """
    return template.format(prompt=prompt, context=context) if context else prompt


def checked(template: str, fields: Sequence[str] = ("prompt", "context"), option: str = "template") -> str:
    """Return the template if it has these fields and no others.

    Raises:
        UserError: it lacks one of these fields, or has others.
    """
    with contextlib.suppress(KeyError, IndexError, ValueError):
        filled = template.format(**{name: f"\0{name}" for name in fields})
        if all(f"\0{name}" in filled for name in fields):
            return template
    names = " and ".join(f"{{{name}}}" for name in fields)
    raise UserError(f"{option} {template!r}: it needs the field{'s' * (len(fields) > 1)} {names}, and no others")


def both_ways(row: Any) -> Iterator[Any]:
    """Turn a row of the RPR data into up to four preference rows; yield any other row unchanged.

    RPR: `prompt, response_a, response_b`, and any of `criteria_x, criteria_y, scenario_x, scenario_y`; response a is
    preferred under every `_x`, response b under every `_y`.
    """
    if not isinstance(row, Mapping) or not {"response_a", "response_b"} <= set(row) or "chosen" in row:
        yield row
        return
    present = [(sort, side) for sort in SORTS for side in SIDES if row.get(f"{sort}_{side}")]
    converted = {"response_a", "response_b", *(f"{sort}_{side}" for sort in SORTS for side in SIDES)}
    others = {k: v for k, v in row.items() if k not in converted}
    for sort, side in present:
        first, second = ("response_a", "response_b") if side == "x" else ("response_b", "response_a")
        yield others | {
            "chosen": row[first], "rejected": row[second], "context": row[f"{sort}_{side}"], "sort": sort,
        }  # fmt: skip
    if not present:
        yield row


def reversals(preferences: Sequence[Preference]) -> tuple[list[tuple[int, int]], list[int]]:
    """Indices of the reversal pairs, and of the records that have no partner."""
    unpaired: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    pairs: list[tuple[int, int]] = []
    partnered: set[int] = set()
    for i, p in enumerate(preferences):
        if not p.context:
            continue
        if partners := unpaired[p.prompt, p.rejected, p.chosen]:
            pairs.append((partners.pop(0), i))
            partnered.update(pairs[-1])
        else:
            unpaired[p.prompt, p.chosen, p.rejected].append(i)
    return pairs, [i for i in range(len(preferences)) if i not in partnered]
