"""Split records by group, so that held-out records have no relatives in training.

Records with the same prompt (question, text, task) form a group. A field of the user's own, `group`, may define larger
ones: an author, a document, a person. Splits go by a hash of the group's key, so that neither the order of a file nor
its other records change the side of a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from didact.data import words
from didact.types import Record, UserError, as_row

R = TypeVar("R", bound=Record)
PROMPT_FIELDS = ("prompt", "question", "text", "task", "x", "source", "lemma")


def keys(records: Sequence[Record], group: str | None = None, name: str = "records") -> list[str]:
    """The group key of every record.

    Args:
        records: records of any kind.
        group: a field of the records, part of their kind or not; by default their prompt.
        name: name of the file, for the error.

    Raises:
        UserError: a record lacks the field.
    """
    if group is None:
        return [
            words.folded(next((str(getattr(r, n)) for n in PROMPT_FIELDS if hasattr(r, n)), repr(r))) for r in records
        ]
    values = [as_row(r).get(group) for r in records]
    if None in values:
        raise UserError(f"{name}: record {values.index(None) + 1} has no field '{group}' to be grouped by")
    return [words.folded(str(v)) for v in values]


def bins(keys: Sequence[str], count: int) -> list[int]:
    """Assign every record to one of `count` bins by a hash of its key."""
    return [int(_hash(key)[:8], 16) % count for key in keys]


def held_out(keys: Sequence[str], share: float) -> set[int]:
    """Indices of about this share of the records, by whole groups: not all groups, and at least one of several."""
    members: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    out: set[int] = set()
    for key in sorted(members, key=_hash):
        if out and len(out) + len(members[key]) / 2 > share * len(keys):
            break
        if len(out) + len(members[key]) < len(keys):
            out.update(members[key])
    return out


def by_prompt(records: Sequence[R], share: float, seed: int) -> tuple[list[R], list[R]]:
    """Split records into held-out and remaining ones: a random share of the prompts, with all their records."""
    prompt_keys = keys(records)
    prompts = list(dict.fromkeys(prompt_keys))
    rng = np.random.default_rng([seed, 98])
    held = {prompts[i] for i in rng.permutation(len(prompts))[: int(share * len(prompts))]}
    keyed = list(zip(prompt_keys, records, strict=True))
    return [r for key, r in keyed if key in held], [r for key, r in keyed if key not in held]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
