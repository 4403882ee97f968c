"""Honest intervals for few units: Student's t over seeds, equivalence, the exact two-sample KS test.

Everything takes plain numbers, one per independent unit (a seed, or an item where items are the units),
and none of it resamples: with five units a percentile bootstrap is far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """An estimate with the two ends of its confidence interval (NaN where there are too few values)."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside; an interval that is NaN excludes nothing."""
        return value < self.low or value > self.high


class KS(NamedTuple):
    """Two-sample Kolmogorov-Smirnov: largest distance of the two empirical distributions, and its p-value."""

    statistic: float
    pvalue: float


def mean_interval(values: Values, level: float = 0.95) -> Interval:
    """Student's t interval of a mean.

        mean +- t_{n-1}((1 + level) / 2) s / sqrt(n)

    One value gives its mean and NaN ends, equal values an interval of width 0, a NaN or infinity NaN throughout.

    Raises:
        ValueError: there are no values, or `level` is not between 0 and 1.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("no values to take a mean of")
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must lie between 0 and 1")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, math.nan, math.nan)
    if not np.isfinite(x).all():
        return Interval(math.nan, math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half)


def paired_interval(a: Values, b: Values, level: float = 0.95) -> Interval:
    """t interval of the mean of `a_i - b_i`, where the i-th values share a unit.

    Raises:
        ValueError: the two differ in length.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"{x.size} values cannot be paired with {y.size}")
    return mean_interval(x - y, level)


def equivalence_p(values: Values, margin: float) -> float:
    """TOST: p-value of 'the mean lies outside (-margin, margin)', the larger of two one-sided t tests.

    `p < alpha` exactly when the `1 - 2 alpha` interval (90 % for alpha = .05) lies inside the margin.

    Raises:
        ValueError: fewer than two values, or a margin that is not positive.
    """
    x = np.asarray(values, dtype=float)
    if x.size < 2 or not margin > 0:
        raise ValueError(f"equivalence needs two values and a positive margin, got {x.size} and {margin}")
    below = stats.ttest_1samp(x, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(x, margin, alternative="less").pvalue
    return float(max(below, above))


def ks(a: Values, b: Values) -> KS:
    """Exact two-sample Kolmogorov-Smirnov test, two-sided.

    `statistic = sup_t |F_a(t) - F_b(t)|`. Its p-value depends on the sizes: never compare p across set sizes.
    Unchanged by any increasing map of both samples.

    Raises:
        ValueError: an empty sample or a NaN.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not x.size or not y.size or np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("the KS test needs two samples without NaN")
    below = [np.searchsorted(np.sort(z), np.concatenate([x, y]), "right") / z.size for z in (x, y)]
    statistic = float(np.abs(below[0] - below[1]).max())
    if x.size == y.size and statistic * x.size < 1.5:
        # The least distance two untied samples of one size can have: p is 1, which scipy's exact sum rounds above.
        return KS(statistic, 1.0)
    return KS(statistic, float(stats.ks_2samp(x, y, method="exact").pvalue))


def harmonic_mean(values: Values) -> float:
    """`n / sum(1 / x_i)`; 0 as soon as one value is 0, NaN as soon as one is NaN.

    Raises:
        ValueError: no values, or a negative one.
    """
    x = np.asarray(values, dtype=float)
    if not x.size or (x < 0).any():
        raise ValueError("a harmonic mean needs values that are not negative")
    return 0.0 if (x == 0).any() and not np.isnan(x).any() else float(stats.hmean(x))
