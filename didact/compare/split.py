"""Which records are trained on, tuned on and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from didact.data import splits
from didact.types import Record, UserError

Part = int | Literal["tune", "all"]
FEWEST = 5  # of what is trained on whole, to tune on


@dataclass(frozen=True)
class Split:
    """Records to train on, and records to score that training does not see."""

    train: Mapping[str, Sequence[Record]]
    test: Mapping[str, Sequence[Record]]


def split(
    records: Mapping[str, Sequence[Record]],
    part: Part,
    folds: int = 0,
    group: str | None = None,
    whole: Sequence[str] = (),
) -> Split:
    """Training and scoring records, by a hash of the prompt (or text): the same prompt is never on both sides.

    A fifth is for tuning. Of the rest one in `folds` (a quarter, where there is one split) is the test of a
    seed; tuning trains on what the first seed trains on, and is scored on its own fifth. What is trained on whole is
    scored on its tuning fifth or on all the rest; where that fifth would hold fewer than five, whole for both.

    Args:
        records: by parameter or kind.
        part: the number of a seed, `tune`, or `all`: everything is scored and nothing trained on.
        folds: 0 has one split; else seed k is tested on fold k.
        group: a field whose equal values are kept on one side; the prompt by default.
        whole: parameters that are trained on whole, though they are scored: what must be forgotten.

    Raises:
        UserError: there are too few records.
    """
    if part == "all":
        return Split({}, dict(records))
    parts = folds or 4
    train: dict[str, Sequence[Record]] = {}
    test: dict[str, Sequence[Record]] = {}
    for name, rows in records.items():
        bins = splits.bins(splits.keys(rows, group, name), 5 * parts)
        if name in whole:
            tuned = sum(b < parts for b in bins)
            apart = FEWEST <= tuned < len(rows)
            train[name] = rows
            test[name] = (
                [r for r, b in zip(rows, bins, strict=True) if (b < parts) == (part == "tune")] if apart else rows
            )
            continue
        fold = 0 if part == "tune" or not folds else part % folds
        scored = [(b < parts) if part == "tune" else (b >= parts and b % parts == fold) for b in bins]
        trained = [b >= parts and b % parts != fold for b in bins]
        train[name] = [r for r, t in zip(rows, trained, strict=True) if t]
        test[name] = [r for r, t in zip(rows, scored, strict=True) if t]
        if not train[name] or not test[name]:
            raise UserError(f"{name}: {len(rows)} records are too few to keep some apart for tuning and testing")
    return Split(train, test)
