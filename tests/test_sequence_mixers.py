"""RetNet, RWKV and Hyena: the parallel form equals the recurrent one, and both are causal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from didact.models import sequence_mixers
from didact.models.sequence import LAYERS, SequenceConfig, SequenceLearner, Stack


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 12))
@settings(max_examples=5)
def test_retention_is_a_state_that_fades(length):
    q, k, v = drawn(3, 2, 3, length, 4, seed=length)
    result, angle = sequence_mixers.retained(q, k, v), torch.tensor([1.0, 0.01], dtype=torch.float64)
    state = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    for t in range(length):
        turn = (angle * t).sin()[None], (angle * t).cos()[None]
        rotated = [sequence_mixers.rotated(each[:, :, t], *turn) for each in (q, k)]
        decay = torch.tensor([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], dtype=torch.float64)[:, None, None]
        state = decay * state + rotated[1][..., None] * v[:, :, t, None]
        assert torch.allclose(result[:, :, t], (rotated[0][..., None, :] @ state)[..., 0, :], atol=1e-12)


@given(st.integers(1, 80))
@settings(max_examples=8)
def test_rwkv_is_two_sums_that_fade(length):
    k, v = drawn(2, 2, length, 3, seed=length) * 4
    decay, bonus = torch.tensor([0.01, 0.5, 6.0], dtype=torch.float64), torch.tensor([-1.0, 0.0, 2.0]).double()
    result = sequence_mixers.faded(decay, bonus, k, v)
    numerator, denominator = torch.zeros(2, 2, 3, dtype=torch.float64)
    for t in range(length):
        current = (bonus + k[:, t]).exp()
        assert torch.allclose(result[:, t], (numerator + current * v[:, t]) / (denominator + current), atol=1e-12)
        numerator, denominator = (
            (-decay).exp() * old + k[:, t].exp() * new for old, new in ((numerator, v[:, t]), (denominator, 1))
        )
    theirs = rwkv_linear_attention_cpu(decay.log().float(), bonus.float(), k.float(), v.float())[0]
    assert torch.allclose(result.float(), theirs, atol=1e-4)


def test_hyenas_convolution_is_the_sum():
    z, layer = drawn(2, 20, 4), sequence_mixers.Hyena(4).double()
    filters = layer.filters(20)
    result = sequence_mixers.convolved(z, filters)
    for t in range(20):
        assert torch.allclose(result[:, t], sum(filters[t - s] * z[:, s] for s in range(t + 1)), atol=1e-12)
    assert torch.equal(layer.filters(30)[:20], filters)  # they do not change with the length of the row


@pytest.mark.parametrize("mixer", LAYERS)
def test_a_token_changes_itself_and_what_follows_and_nothing_before(mixer):
    stack = Stack(SequenceConfig(mixer=mixer, layers=1, width=8, heads=2)).double()
    tokens = drawn(1, 40, 8)
    other = tokens.clone()
    other[:, 20] = drawn(8, seed=1)
    apart = (stack(other) - stack(tokens)).abs().amax(-1)[0].detach()
    assert (apart[:20] < 1e-12).all() and (apart[20:] > 1e-9).all()
    assert torch.allclose(stack(tokens[:, :25]), stack(tokens)[:, :25], atol=1e-12)
    learner = SequenceLearner(3, 2, mixer=mixer, layers=1, width=8, heads=2).double()
    assert learner(drawn(2, 6, 3), drawn(2, 6, 2)).shape == (2, 6, 2) and learner.state_size(6) > 0
