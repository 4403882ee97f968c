"""Intervals and tests against scipy, known values and their guarantees."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from didact.evaluate import statistics

numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


def test_ks_known_answers():
    same = np.arange(10.0)
    assert statistics.ks(same, same) == (0.0, 1.0)
    apart = statistics.ks(same, same + 100)
    assert apart.statistic == 1.0
    assert apart.pvalue == pytest.approx(2 / math.comb(20, 10), rel=1e-9)
    assert apart.pvalue == pytest.approx(1.0825e-5, rel=1e-4)


def test_ks_is_exact_on_300_a_side():
    apart = statistics.ks(np.arange(300.0), np.arange(300.0) + 1000)
    assert apart.pvalue == pytest.approx(2 / math.comb(600, 300), rel=1e-6)


def test_ks_at_the_least_distance_is_exact_too():
    x = np.arange(300.0)
    assert statistics.ks(x, x + 0.5) == (pytest.approx(1 / 300), 1.0)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=12), st.lists(st.integers(-20, 20), min_size=1, max_size=12))
def test_ks_ignores_increasing_maps_and_inversion(a, b):
    x, y = np.exp(np.array(a) / 5), np.exp(np.array(b) / 5)
    plain = statistics.ks(x, y)
    assert statistics.ks(x**3, y**3) == pytest.approx(plain)
    assert statistics.ks(1 / x, 1 / y) == pytest.approx(plain)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan]])
def test_ks_refuses_empty_and_nan(bad):
    with pytest.raises(ValueError, match="without NaN"):
        statistics.ks(bad, [1.0])


def test_harmonic_mean():
    assert statistics.harmonic_mean([1.0, 2.0, 4.0]) == pytest.approx(12 / 7)
    assert statistics.harmonic_mean([0.9] * 8 + [0.0]) == 0.0
    assert math.isnan(statistics.harmonic_mean([0.5, math.nan, 0.0]))
    for bad in ([], [1.0, -0.1]):
        with pytest.raises(ValueError):
            statistics.harmonic_mean(bad)


@given(numbers, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_mean_interval_is_scipys(values, level):
    result = statistics.mean_interval(values, level)
    if np.std(values) > 1e-9:
        low, high = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
        assert (result.low, result.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_mean_interval_at_the_edges():
    assert statistics.mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    one = statistics.mean_interval([2.0])
    assert one.estimate == 2.0 and math.isnan(one.low) and not one.excludes(0.0)
    for values, level in (([], 0.95), ([1.0, 2.0], 1.0)):
        with pytest.raises(ValueError):
            statistics.mean_interval(values, level)


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    result = [statistics.mean_interval(row) for row in rng.normal(1.0, 3.0, (2000, 5))]
    covered = np.mean([not i.excludes(1.0) for i in result])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@given(numbers, st.floats(-10, 10))
def test_paired_interval_is_that_of_the_differences(values, shift):
    other = [v + shift for v in values]
    low, high = sorted(statistics.paired_interval(values, other)[1:])
    assert low - 1e-6 <= -shift <= high + 1e-6


def test_paired_interval_refuses_unpaired_values():
    with pytest.raises(ValueError, match="paired"):
        statistics.paired_interval([1.0, 2.0], [1.0])


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12), st.floats(0.05, 1.5))
def test_equivalence_p_agrees_with_the_90_percent_interval(values, margin):
    low, high = statistics.mean_interval(values, 0.90)[1:]
    if np.std(values) < 1e-6 or min(abs(low + margin), abs(high - margin)) < 1e-9:
        return
    assert (statistics.equivalence_p(values, margin) < 0.05) == (-margin < low and high < margin)


def test_equivalence_needs_two_values_and_a_margin():
    for values, margin in (([1.0], 0.5), ([1.0, 2.0], 0.0)):
        with pytest.raises(ValueError):
            statistics.equivalence_p(values, margin)


def test_holm_known_answers():
    # .01 * 4, .013 * 3 (raised to the one before), .014 * 2 (the same), .19
    assert statistics.holm([0.01, 0.013, 0.014, 0.19]) == pytest.approx([0.04, 0.04, 0.04, 0.19])
    assert statistics.holm([0.4, 0.01, 0.5]) == pytest.approx([0.8, 0.03, 0.8])
    assert statistics.holm([0.02, math.nan]) == pytest.approx([0.02, math.nan], nan_ok=True)
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni_and_keeps_their_order(values):
    corrected = statistics.holm(values)
    assert all(p <= c <= min(1.0, p * len(values)) + 1e-12 for p, c in zip(values, corrected, strict=True))
    assert [c for _, c in sorted(zip(values, corrected, strict=True))] == sorted(corrected)


@given(st.lists(st.floats(-3, 3).map(lambda x: round(x, 2)), min_size=2, max_size=8), st.floats(-1, 1))
def test_the_paired_p_value_agrees_with_the_interval(values, shift):
    other = [v / 2 + shift for v in values]
    p, interval = statistics.paired_p(values, other), statistics.paired_interval(values, other)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == interval.excludes(0.0)


def test_the_paired_p_value_at_the_edges():
    assert statistics.paired_p([1.0, 1.0], [1.0, 1.0]) == 1 and statistics.paired_p([1.0, 1.0], [0.5, 0.5]) == 0
    assert math.isnan(statistics.paired_p([1.0], [0.5]))
