"""Which records belong together, so that what is scored was not taught in other words.

Records of one prompt (question, text, task) belong together. A field of the user's own, `group`, may say more: an
author, a document, a person. Choices are by a hash of that, so that neither the order of a file nor what else is in it
changes on which side a record is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from didact.data import words
from didact.types import Record, UserError, as_row

R = TypeVar("R", bound=Record)
SAID = ("prompt", "question", "text", "task", "x", "source", "lemma")


def keys(records: Sequence[Record], group: str | None = None, name: str = "records") -> list[str]:
    """For each record what it shares with those it belongs to.

    Args:
        records: any.
        group: a field of theirs, known to the record's kind or not; their prompt where none is named.
        name: of the file, for the error.

    Raises:
        UserError: a record lacks the field.
    """
    if group is None:
        return [words.folded(next((str(getattr(r, n)) for n in SAID if hasattr(r, n)), repr(r))) for r in records]
    values = [as_row(r).get(group) for r in records]
    if None in values:
        raise UserError(f"{name}: record {values.index(None) + 1} has no field '{group}' to be grouped by")
    return [words.folded(str(v)) for v in values]


def bins(keys: Sequence[str], count: int) -> list[int]:
    """A bin of `count` for every record, the same for equal keys."""
    return [int(_hash(key)[:8], 16) % count for key in keys]


def held_out(keys: Sequence[str], share: float) -> set[int]:
    """Indices of about a share of the records, whole keys; fewer rather than all, and at least one key of several."""
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
    """Records held out, and the rest: a share of the prompts, drawn at random, with all that is said of them."""
    of = keys(records)
    prompts = list(dict.fromkeys(of))
    draw = np.random.default_rng([seed, 98])
    out = {prompts[i] for i in draw.permutation(len(prompts))[: int(share * len(prompts))]}
    both = list(zip(of, records, strict=True))
    return [r for key, r in both if key in out], [r for key, r in both if key not in out]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
