"""N-gram heads: known answers, the fast lookup against the definition, and heads in a user's model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from didact.models import ngram_heads
from didact.models.ngram_heads import look_up, weights

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=24)


def ids(*tokens):
    return torch.tensor([tokens])


def test_the_follower_of_an_earlier_occurrence_is_attended_to():
    a, b, c = range(3)
    one, two = weights(ids(a, b, c, a, b), 1)[0], weights(ids(a, b, c, a, b), 2)[0]
    assert one[4].tolist() == two[4].tolist() == [0, 0, 1, 0, 0]
    assert one[3].tolist() == [0, 1, 0, 0, 0] and two[3].tolist() == [0] * 5
    assert weights(ids(a, a, a, a), 1)[0, 3].tolist() == [0, 0.5, 0.5, 0]


@given(tokens=IDS, n=st.integers(1, 3))
def test_rows_sum_to_one_or_zero_below_the_diagonal_and_letters_are_only_names(tokens, n):
    each = weights(ids(*tokens), n)[0]
    assert torch.equal(each, each.tril(-1))
    assert all(total in (0.0, 1.0) for total in each.sum(1).round(decimals=12).tolist())
    assert torch.equal(each, weights(ids(*[7 * (3 - t) for t in tokens]), n)[0])
    assert bool((weights(ids(*tokens), n + 1)[0] > 0).le(each > 0).all())  # a longer n-gram matches less often


@given(tokens=IDS, n=st.integers(0, 3))
def test_with_one_hot_states_the_lookup_counts_followers(tokens, n):
    states = torch.eye(4, dtype=torch.float64)[ids(*tokens)]
    result = look_up(states, ids(*tokens), n)[0]
    for t in range(len(tokens)):
        ends = [j for j in range(n - 1 if n else 0, t - 1) if tokens[j + 1 - n : j + 1] == tokens[t + 1 - n : t + 1]]
        ends = ends if t + 1 >= n else []
        share = [sum(tokens[j + 1] == v for j in ends) / max(len(ends), 1) for v in range(4)]
        assert result[t].tolist() == pytest.approx(share)


@st.composite
def texts(draw):
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    tokens = draw(st.lists(st.integers(0, 2), min_size=rows * width, max_size=rows * width))
    cuts = draw(st.lists(st.integers(0, 1), min_size=rows * width, max_size=rows * width))
    pads = draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows))
    documents = torch.tensor(cuts).view(rows, width).cumsum(1) // 6
    for row, pad in enumerate(pads):
        documents[row, :pad] = -1
    return torch.tensor(tokens).view(rows, width), documents


@given(text=texts(), n=st.integers(1, 3), boundary=st.sampled_from([None, 2]))
def test_the_lookup_is_the_definition_in_values_and_gradients(text, n, boundary):
    tokens, documents = text
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(*tokens.shape, 5, dtype=torch.float64, generator=rng).requires_grad_()
    result = look_up(states, tokens, n, documents, boundary=boundary)
    each = weights(tokens, n, documents, boundary=boundary)
    assert torch.allclose(result, each @ states, atol=1e-12)
    grad_out = torch.randn(result.shape, dtype=torch.float64, generator=rng)
    assert torch.allclose(torch.autograd.grad(result, states, grad_out)[0], each.transpose(1, 2) @ grad_out, atol=1e-12)
    assert torch.allclose(look_up(states, tokens, n, documents, 1, boundary), result[:, -1:], atol=1e-12)
    crosses = [each[r, t, i] for r, t, i in each.nonzero().tolist() if documents[r, t] != documents[r, i]]
    assert not crosses


def test_no_window_crosses_the_boundary_but_one_may_begin_with_it():
    a, b, end = range(3)
    text = ids(a, end, b, a, end, b, a)
    assert weights(text, 2)[0, 4].tolist() == [0, 0, 1, 0, 0, 0, 0]  # (a, end) was followed by b
    bounded = weights(text, 2, boundary=end)[0]
    assert not bounded[4].any() and bounded[5].tolist() == [0, 0, 0, 1, 0, 0, 0]  # (end, b) by a


def test_columns_in_parts_are_the_same(monkeypatch):
    tokens, states = torch.randint(0, 3, (2, 40)), torch.randn(2, 40, 7)
    whole = look_up(states, tokens, 2)
    monkeypatch.setattr(ngram_heads, "CHUNK", 170)
    assert torch.equal(look_up(states, tokens, 2), whole)
