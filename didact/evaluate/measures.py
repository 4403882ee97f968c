"""A measure of one model with its interval, and metrics that combine measures before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from didact.evaluate import statistics
from didact.types import Metric

BESIDE = ("_with_end", "_without_end")  # suffixes of secondary measures, with the other treatment of end tokens
Better = Literal["higher", "lower", "gold", ""]


@dataclass(frozen=True)
class Measure:
    """A measure of one model, with its 95 % interval over `n` records if it is a mean over them.

    `values` are then the records' values, in their order, for paired comparisons.
    """

    value: float
    n: int
    better: Better = ""
    unit: str = ""
    ci: tuple[float, float] | None = None
    help: str = ""
    values: tuple[float, ...] = ()


def mean_measure(values: Any, better: Better, help: str, unit: str = "") -> Measure:
    """The mean of one value an item, with its interval over the items and the values themselves.

    The interval is Student's t; Wilson's if all values are 0 or 1, or are equal shares.
    """
    x = np.asarray(values, dtype=float)
    share = not unit and x.min() >= 0 and x.max() <= 1
    counts = share and (np.isin(x, (0, 1)).all() or (x == x[0]).all())
    mean = statistics.share_interval(float(x.sum()), len(x)) if counts else statistics.mean_interval(x)
    low, high = (0.0, 1.0) if share else (-np.inf, np.inf)  # a mean of shares is a share
    ci = (max(low, mean.low), min(high, mean.high)) if len(x) > 1 else None
    return Measure(mean.estimate, len(values), better, unit, ci, help, tuple(x.tolist()))


def metrics(
    before: Mapping[str, Measure] | None, after: Mapping[str, Measure], gold: Mapping[str, Measure] | None = None
) -> dict[str, Metric]:
    """Metrics of a result from the measures of the start model, the trained one and, if given, a gold one.

    Secondary measures (`BESIDE`) come last.
    """

    def of(measures: Mapping[str, Measure] | None, name: str) -> float | None:
        return measures[name].value if measures and name in measures else None

    return {
        name: Metric(
            after=m.value, before=of(before, name), gold=of(gold, name), n=m.n, ci=m.ci, unit=m.unit,
            better=m.better, help=m.help,
        )
        for name, m in sorted(after.items(), key=lambda pair: pair[0].endswith(BESIDE))
    }  # fmt: skip
