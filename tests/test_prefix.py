"""A common prefix run once gives the same as whole rows, for every supported model type."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import KINDS, WINDOW, tiny

from didact.models import adapters, prefix
from didact.models.model import Model

SHARED = [10, 11, 12, 13, 14, 15, 16]  # longer than the sliding windows
SUFFIXES = [[20, 21, 22], [23], [24, 25], [26, 27, 28, 29]]
PROVEN = [k for k in KINDS if k not in ("mamba", "t5")]


def last_logits(model, rows):
    """Return the logits after each row, one row at a time, by the model's own forward."""
    return torch.stack([model.module(input_ids=torch.tensor([r])).logits[0, -1] for r in rows])


def test_every_model_type_of_the_list_is_tested_here():
    assert {tiny(k).config.model_type for k in PROVEN} == prefix.PROVEN
    assert len(SHARED) > WINDOW


@pytest.mark.parametrize("kind", KINDS)
def test_only_proven_types_share(kind):
    assert prefix.shares(tiny(kind)) == (kind in PROVEN)


@pytest.mark.parametrize("kind", PROVEN)
@torch.no_grad()
def test_a_prefix_run_once_and_expanded_gives_the_whole_rows_logits(kind):
    model = tiny(kind)
    store = prefix.expand(prefix.prefill(model, SHARED), len(SUFFIXES), room=4)
    actual = prefix.extend(model, store, SUFFIXES)
    torch.testing.assert_close(actual, last_logits(model, [SHARED + s for s in SUFFIXES]), rtol=1e-6, atol=1e-6)
    assert actual.std(0).min() > 1e-4  # where the rows differ


@pytest.mark.parametrize("kind", PROVEN)
@torch.no_grad()
def test_rows_packed_to_end_together_go_on_as_each_alone(kind):
    model = tiny(kind)
    store = prefix.expand(prefix.prefill(model, SHARED), len(SUFFIXES), room=4)
    prefix.extend(model, store, SUFFIXES)
    other = prefix.prefill(model, [30, 31])
    rows = [SHARED + SUFFIXES[3], SHARED + SUFFIXES[1], [30, 31], SHARED + SUFFIXES[3]]
    pieces = [(3, 0, 11), (1, 0, 8)]
    together = prefix.packed([(store, pieces), (other, [(0, 0, 2)]), (store, pieces[:1])], room=6)
    width = together.length
    mask = torch.arange(width + 6) >= torch.tensor([[width - len(r)] for r in rows])
    for at in range(6):
        ids = torch.arange(4) + 40 + at
        positions = torch.tensor([[len(r)] for r in rows])
        actual = prefix.step(model, together, ids[:, None], positions, mask[:, : width + at + 1])[:, -1]
        rows = [[*r, t] for r, t in zip(rows, ids.tolist(), strict=True)]
        torch.testing.assert_close(actual, last_logits(model, rows), rtol=1e-6, atol=2e-6)


@torch.no_grad()
def test_selected_rows_are_copies_in_the_order_asked():
    model = tiny("llama")
    store = prefix.expand(prefix.prefill(model, SHARED), 2, room=1)
    prefix.extend(model, store, [[20], [21]])
    swapped = store.select(torch.tensor([1, 0, 1]), room=1)
    prefix.extend(model, store, [[50], [50]])  # the selection does not see it
    actual = prefix.extend(model, swapped, [[22], [22], [23]])
    expected = last_logits(model, [[*SHARED, 21, 22], [*SHARED, 20, 22], [*SHARED, 21, 23]])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_an_append_into_room_copies_nothing():
    model = tiny("llama")
    store = prefix.expand(prefix.prefill(model, SHARED), 2, room=8)
    before = [(x.keys.data_ptr(), x.values.data_ptr()) for x in store.layers]
    prefix.extend(model, store, [[20, 21], [22, 23]])
    assert [(x.keys.data_ptr(), x.values.data_ptr()) for x in store.layers] == before
    assert store.length == len(SHARED) + 2


def test_without_room_gradients_go_through_the_prefix():
    model = tiny("llama")
    store = prefix.Store()
    prefix.extend(model, store, [SHARED])
    prefix.extend(model, prefix.expand(store, 2), [[20, 21], [22, 23]]).logsumexp(-1).sum().backward()
    ours = {n: p.grad.clone() for n, p in model.module.named_parameters()}
    model.module.zero_grad()
    whole = torch.tensor([[*SHARED, 20, 21], [*SHARED, 22, 23]])
    model.module(input_ids=whole).logits[:, -1].logsumexp(-1).sum().backward()
    for name, p in model.module.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_adapters_share_too():
    model = adapters.lora(tiny("llama"), 4)
    for name, p in model.module.named_parameters():
        if "lora_B" in name:
            p.add_(0.3)
    assert prefix.shares(model)
    store = prefix.expand(prefix.prefill(model, SHARED), len(SUFFIXES))
    actual = prefix.extend(model, store, SUFFIXES)
    torch.testing.assert_close(actual, last_logits(model, [SHARED + s for s in SUFFIXES]), rtol=1e-6, atol=1e-6)


def test_positions_that_move_with_the_longest_row_are_not_shared():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert not prefix.shares(tiny("llama", rope_parameters=rope))


def test_a_learned_prompt_is_not_shared():
    import peft

    model = tiny("llama")
    config = peft.PromptTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=3)
    assert not prefix.shares(Model(peft.get_peft_model(model.module, config), model.processor))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=2, max_size=5))
def test_the_common_prefix_is_shared_by_all_and_leaves_each_a_token(rows):
    n = prefix.common(rows)
    assert all(r[:n] == rows[0][:n] for r in rows) and min(map(len, rows)) > n
    longer = n + 1
    assert min(map(len, rows)) == longer or any(r[:longer] != rows[0][:longer] for r in rows)


def test_one_row_alone_shares_nothing():
    assert prefix.common([[1, 2, 3]]) == 0
