"""Similarities of distributions and of updates, order sensitivity and the verdict: known answers and properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from didact.evaluate import similarity


def drawn(seed: int, queries: int = 5, vocabulary: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(queries, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)


def peaked(*tokens: int, vocabulary: int = 20) -> torch.Tensor:
    """Return a distribution with these likeliest tokens, in this order."""
    logits = torch.zeros(1, vocabulary, dtype=torch.float64)
    for rank, token in enumerate(tokens):
        logits[0, token] = 10.0 - rank
    return logits.log_softmax(-1)


def test_overlap_and_its_cosine_have_known_answers() -> None:
    p, apart = peaked(0, 1, 2), peaked(3, 4, 5)
    assert similarity.token_overlap(p, p, 3).item() == similarity.overlap_cosine(p, p, 3).item() == 1
    assert similarity.token_overlap(p, apart, 3).item() == similarity.overlap_cosine(p, apart, 3).item() == 0
    half = peaked(0, 1, 7, 8)
    assert similarity.token_overlap(peaked(0, 1, 2, 3), half, 4).item() == 0.5
    # Two shared tokens of four: a and b have their probabilities, and each missing token adds 1 below.
    a, b = peaked(0, 1, 2, 3)[0, :2].exp(), half[0, :2].exp()
    expected = (a * b).sum() / ((a**2).sum() * (b**2).sum() + 2).sqrt()
    assert similarity.overlap_cosine(peaked(0, 1, 2, 3), half, 4).item() == pytest.approx(expected.item(), abs=1e-12)
    assert similarity.overlap_cosine(peaked(0, 1, 2, 3), half, 4, penalty=False).item() == pytest.approx(1.0, abs=1e-12)


def test_two_random_choices_overlap_by_k_of_v() -> None:
    assert similarity.chance_overlap(64) == pytest.approx(0.15625)
    result = similarity.token_overlap(drawn(0, 4000, 64), drawn(1, 4000, 64)).mean().item()
    assert result == pytest.approx(10 / 64, abs=4 * math.sqrt(10 / 64 * 54 / 64 * 54 / 63 / 10 / 4000))


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), factor=st.floats(0.1, 10))
def test_similarities_are_symmetric_and_bounded(seed: int, k: int, factor: float) -> None:
    p, q = drawn(seed), drawn(seed + 1)
    for measure in (similarity.token_overlap, similarity.overlap_cosine):
        pq, qp = measure(p, q, k), measure(q, p, k)
        assert torch.allclose(pq, qp) and (pq >= 0).all() and (pq <= 1 + 1e-12).all()
    plain = similarity.overlap_cosine(p, q, k, penalty=False)
    assert torch.allclose(plain, similarity.overlap_cosine(p + math.log(factor), q, k, penalty=False))
    assert (similarity.overlap_cosine(p, q, k) <= plain + 1e-12).all() and (similarity.divergence(p, q) > 0).all()
    assert similarity.divergence(p, p).abs().max() < 1e-12


def test_order_sensitivity_is_the_spread_over_orders() -> None:
    labels = torch.log(torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]], dtype=torch.float64))
    result = similarity.order_sensitivity(labels)
    assert result["probability"] == pytest.approx(0.4 / math.sqrt(2)) and result["flips"] == 1
    logits = [math.log(p / (1 - p)) for p in (0.2, 0.6)]
    assert result["logit"] == pytest.approx(abs(logits[0] - logits[1]) / math.sqrt(2))
    assert similarity.order_sensitivity(labels[:1].expand(3, -1, -1)) == {"probability": 0, "logit": 0, "flips": 0}


def test_relative_is_the_ratio_of_means_with_an_interval() -> None:
    result = similarity.relative([0.6, 0.8, 0.7], [0.2, 0.4, 0.2], [1.0, 1.0, 0.9])
    assert result.estimate == pytest.approx(1.3 / 2.1) and result.low < result.estimate < result.high
    exact = similarity.relative([0.5, 0.5], [0.0, 0.0], [1.0, 1.0])
    assert exact == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(similarity.relative([0.5], [1.0], [1.0]).estimate)


@settings(max_examples=15)
@given(floor=st.floats(0, 0.4), room=st.floats(0.1, 0.5), share=st.floats(-0.5, 1.2), seed=st.integers(0, 999))
def test_relative_knows_where_between_floor_and_ceiling(floor: float, room: float, share: float, seed: int) -> None:
    tops = room * (1 + 0.1 * np.random.default_rng(seed).uniform(-1, 1, 6))
    result = similarity.relative(floor + share * tops, np.full(6, floor), floor + tops)
    assert result.estimate == pytest.approx(share, abs=1e-9) and result.high - result.low < 1e-6


NEAR, FAR = [0.97, 0.99, 0.98, 0.98], [0.3, 0.35, 0.25, 0.3]
FLOOR, CEILING = [0.1, 0.12, 0.08, 0.1], [0.98, 0.99, 0.97, 0.99]


@pytest.mark.parametrize(
    ("value", "orders", "expected"),
    [
        (NEAR, [0.0] * 4, "indistinguishable"),
        (NEAR, [0.001, -0.001, 0.002, 0.0], "indistinguishable"),
        (FAR, [0.0] * 4, "different"),
        (NEAR, [0.2, 0.25, 0.22, 0.2], "different"),  # equally near, but with another order sensitivity
        ([0.2, 1.0, 0.9, 0.98], [0.0] * 4, "inconclusive"),
        (NEAR, [0.1, -0.1, 0.09, -0.12], "inconclusive"),  # a missing p-value does not show equivalence
    ],
)
def test_the_verdict_is_by_intervals(value: list[float], orders: list[float], expected: str) -> None:
    result = similarity.verdict(value, FLOOR, CEILING, orders)
    assert result["verdict"] == expected, result


def test_where_demonstrations_do_nothing_the_verdict_says_nothing() -> None:
    assert similarity.verdict(NEAR, CEILING, CEILING, [0.0] * 4)["verdict"] == "inconclusive"


def test_updates_repairs_and_ranks_have_known_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    start, a, b = (torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    assert torch.allclose(similarity.update_cosine(a, a, start), torch.ones(6, dtype=torch.float64))
    # Vectors are normalised, so their scale has no influence; without the subtraction the value would differ.
    assert torch.allclose(similarity.update_cosine(3 * a, b, start), similarity.update_cosine(a, 0.1 * b, start))
    assert not torch.allclose(
        similarity.update_cosine(a, b, start), torch.nn.functional.cosine_similarity(a, b, dim=-1), atol=0.01
    )
    start_right, tuned = [False, False, True, False], [True, True, True, False]
    assert similarity.recovered(start_right, tuned, tuned) == 1
    assert similarity.recovered(start_right, tuned, [True, False, False, True]) == 0.5
    assert math.isnan(similarity.recovered([True], [True], [True]))
    assert similarity.kendall([1, 2, 3], [4, 5, 9]) == pytest.approx(1)
    assert similarity.kendall([1, 2, 3], [9, 5, 4]) == pytest.approx(-1)


def test_a_summary_leaves_undefined_units_out_and_says_so() -> None:
    rows: list[dict[str, Any]] = [{"a": 1.0}, {"a": 3.0}, {"a": math.nan}]
    assert similarity.summary(rows)["a"]["estimate"] == 2 and similarity.summary(rows)["a"]["undefined"] == 1
