"""Confidence intervals for few units: Student's t over seeds or groups of records, equivalence, exact tests.

Everything takes plain numbers, one per independent unit (a seed, or an item where items are the units),
and no interval resamples: with five units a percentile bootstrap is far too narrow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
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


def share_interval(right: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a share, `right` of `n`: it has a width for 0 of 6 too.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Values between 0 and 1 that add up to `right` vary no more than those that are 0 or 1: for them it is too wide.
    """
    p, z = right / n, float(stats.norm.ppf((1 + level) / 2))
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((p + z**2 / (2 * n) + side * half) / (1 + z**2 / n) for side in (-1, 1))
    return Interval(p, low if right > 0 else 0.0, high if right < n else 1.0)


def paired_interval(a: Values, b: Values, level: float = 0.95) -> Interval:
    """t interval of the mean of `a_i - b_i`, where the i-th values share a unit.

    Raises:
        ValueError: the two differ in length.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"{x.size} values cannot be paired with {y.size}")
    return mean_interval(x - y, level)


def paired_p(a: Values, b: Values) -> float:
    """Two-sided p-value of the t test that the mean of `a_i - b_i` is 0; 1 where all are 0, NaN for one pair."""
    interval = paired_interval(a, b)
    if interval.low == interval.high:
        return float(interval.estimate == 0)
    n = len(a)
    t = interval.estimate / (interval.high - interval.estimate) * stats.t.ppf(0.975, n - 1) if n > 1 else math.nan
    return float(2 * stats.t.sf(abs(t), n - 1))


def auc(a: Values, b: Values, level: float = 0.95) -> Interval:
    """The probability that one of `a` is above one of `b` (ties count half), with DeLong's interval (1988).

    If it is 0 or 1, or a side has one value and so no variance, the ends are those of an exact binomial test with the
    size of the smaller side.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    above = (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)
    estimate, n = float(above.mean()), min(len(x), len(y))
    if estimate in (0.0, 1.0) or n < 2:
        bound = ((1 - level) / 2) ** (1 / n)
        return Interval(
            estimate, *((0.0, 1 - bound) if estimate == 0 else (bound, 1.0) if estimate == 1 else (0.0, 1.0))
        )
    variance = above.mean(1).var(ddof=1) / len(x) + above.mean(0).var(ddof=1) / len(y)
    half = float(stats.norm.ppf((1 + level) / 2) * math.sqrt(variance))
    return Interval(estimate, max(0.0, estimate - half), min(1.0, estimate + half))


def by_group(values: Values, groups: Sequence[str]) -> NDArray[np.float64]:
    """One number per group, whose mean is the mean of all values: records of a group (a prompt) are not independent."""
    index = {key: i for i, key in enumerate(dict.fromkeys(groups))}
    sums = np.bincount([index[key] for key in groups], weights=np.asarray(values, dtype=float), minlength=len(index))
    return np.asarray(sums * len(index) / len(groups))


def record_interval(values: Values, groups: Sequence[str], level: float = 0.95) -> Interval:
    """t interval of the mean over records, clustered by group; exact for shares that are all 0 or all 1."""
    x = np.asarray(values, dtype=float)
    share = bool(x.min() >= 0 and x.max() <= 1)
    if share and x.min() == x.max() and x[0] in (0, 1):
        return two_way(np.full((len(set(groups)), 1), x[0]), level, share)
    return two_way(by_group(x, groups)[:, None], level, share)


def record_difference(a: Values, b: Values, groups: Sequence[str], level: float = 0.95) -> tuple[Interval, float]:
    """Interval of the mean of `a_i - b_i` over the same records, clustered by group, and `flip_p` over the groups.

    If shares never differ, the interval still has a width: so few groups could have missed a difference.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    units = by_group(x - y, groups)
    interval = mean_interval(units, level)
    if min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1:  # shares
        interval = Interval(interval.estimate, max(-1.0, interval.low), min(1.0, interval.high))
    if not (x != y).any() and set(np.unique(x)) <= {0.0, 1.0}:
        bound = 1 - ((1 - level) / 2) ** (1 / len(units))
        interval = Interval(0.0, -bound, bound)
    return interval, flip_p(units)


def flip_p(differences: Values, draws: int = 20_000) -> float:
    """Two-sided sign-flip test: p-value of the absolute sum of differences if each could have either sign.

    Exact if all nonzero differences have the same size (McNemar's test) or there are at most 12 of them; else over
    `draws` random flips, the observed one included.
    """
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    if not len(d):
        return 1.0
    if np.ptp(np.abs(d)) < 1e-12 * np.abs(d).max():
        return float(stats.binomtest(int((d > 0).sum()), len(d)).pvalue)
    observed = abs(d.sum()) * (1 - 1e-12)
    if len(d) <= 12:
        return float(np.mean(np.abs(np.array(list(itertools.product((-1, 1), repeat=len(d)))) @ d) >= observed))
    rng = np.random.default_rng(0)
    extreme = sum(
        int((np.abs(rng.choice((-1.0, 1.0), (1000, len(d))) @ d) >= observed).sum()) for _ in range(draws // 1000)
    )
    return (extreme + 1) / (draws + 1)


def holm(p_values: Values) -> list[float]:
    """P-values corrected by Holm's step-down method: the k-th smallest of m times m - k + 1, never falling, at most 1.

    The chance of one false "different" among all is then below the level (Holm 1979). NaN counts as no comparison.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    out = np.full(p.shape, math.nan)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return [float(v) for v in out]


def welch_interval(a: Values, b: Values, level: float = 0.95) -> Interval:
    """Welch's interval of `mean(a) - mean(b)`: two independent samples of unequal variance."""
    samples = [np.asarray(v, dtype=float) for v in (a, b)]
    gap = float(samples[0].mean() - samples[1].mean())
    if min(map(len, samples)) < 2:
        return Interval(gap, math.nan, math.nan)
    parts = [float(v.var(ddof=1)) / len(v) for v in samples]
    variance = sum(parts)
    if not variance:
        return Interval(gap, gap, gap)
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, samples, strict=True))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return Interval(gap, gap - half, gap + half)


def two_way(values: NDArray[np.float64], level: float = 0.95, share: bool = False) -> Interval:
    """Interval of the mean of `(items, draws)`, both of which are random samples.

    With x_id = mu + item_i + draw_d + rest_id and the mean squares of the two-way table,

        V(mean) = (MS_item + MS_draw - MS_rest) / (n D),

    which is unbiased, and never less than MS_item / (n D) or MS_draw / (n D), what either clustering alone gives.
    The quantile is Student's, with Satterthwaite's degrees of freedom: n - 1 where items make the variance (one
    draw, say), D - 1 where draws do, so that few draws give the t interval over draws.

    Args:
        values: every item at every draw.
        level: of the interval.
        share: values are shares in [0, 1] and so is the mean; if all are 0 or all 1, the interval is the exact
            binomial one of the n items (a width of 0 would be wrong).
    """
    x = np.asarray(values, dtype=float)
    n, draws = x.shape
    mean = float(x.mean())
    if share and (np.all(x == 0) or np.all(x == 1)):
        bound = ((1 - level) / 2) ** (1 / n)
        return Interval(mean, *((0.0, 1 - bound) if mean == 0 else (bound, 1.0)))
    item = draws * ((x.mean(1) - mean) ** 2).sum() / (n - 1) if n > 1 else 0.0
    draw = n * ((x.mean(0) - mean) ** 2).sum() / (draws - 1) if draws > 1 else 0.0
    both = n > 1 and draws > 1
    rest = ((x - x.mean(1, keepdims=True) - x.mean(0) + mean) ** 2).sum() / ((n - 1) * (draws - 1)) if both else 0.0
    if n * draws == 1:
        return Interval(mean, math.nan, math.nan)
    total = max(item + draw - rest, item, draw)
    freedom = float(n - 1 if total == item else draws - 1)
    if total > max(item, draw):
        freedom = total**2 / (item**2 / (n - 1) + draw**2 / (draws - 1) + rest**2 / ((n - 1) * (draws - 1)))
        freedom = max(freedom, min(n, draws) - 1.0)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(total / (n * draws)) if total > 0 else 0.0
    low, high = mean - half, mean + half
    return Interval(mean, max(0.0, low), min(1.0, high)) if share else Interval(mean, low, high)


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
