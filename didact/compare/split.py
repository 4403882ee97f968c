"""Split records into training, tuning and test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from didact.data import splits
from didact.types import Record, UserError

Part = int | Literal["tune", "all"]
FEWEST = 5  # tuning records, where a parameter is trained on whole


@dataclass(frozen=True)
class Split:
    """Training records, and the held-out records that are scored."""

    train: Mapping[str, Sequence[Record]]
    test: Mapping[str, Sequence[Record]]


def split(
    records: Mapping[str, Sequence[Record]],
    part: Part,
    folds: int = 0,
    group: str | None = None,
    whole: Sequence[str] = (),
) -> Split:
    """Split records into training and scoring ones by a hash of the prompt (or text): no prompt is on both sides.

    A fifth is for tuning. One in `folds` of the rest (a quarter, if there is one split) is a seed's test set. Tuning
    trains on the first seed's training records and scores the tuning fifth. Parameters in `whole` are trained on in
    full and scored on the tuning fifth or on the rest; if that fifth has fewer than five records, on all of them.

    Args:
        records: by parameter or kind.
        part: the number of a seed, `tune`, or `all`: everything is scored and nothing trained on.
        folds: 0: one split; else seed k is tested on fold k.
        group: a field; records with equal values stay on the same side. The prompt by default.
        whole: parameters that are trained on in full although they are scored: what must be forgotten.

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
            tuning = sum(b < parts for b in bins)
            separate = FEWEST <= tuning < len(rows)
            train[name] = rows
            test[name] = (
                [r for r, b in zip(rows, bins, strict=True) if (b < parts) == (part == "tune")] if separate else rows
            )
            continue
        fold = 0 if part == "tune" or not folds else part % folds
        scored = [(b < parts) if part == "tune" else (b >= parts and b % parts == fold) for b in bins]
        trained = [b >= parts and b % parts != fold for b in bins]
        train[name] = [r for r, t in zip(rows, trained, strict=True) if t]
        test[name] = [r for r, t in zip(rows, scored, strict=True) if t]
        if not train[name] or not test[name]:
            raise UserError(f"{name}: {len(rows)} records are too few to hold some out for tuning and testing")
    return Split(train, test)
