"""Arithmetic on weights: identities in float64 and on real adapters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import tiny

from didact.models import adapters, merge
from didact.models.model import copy_of
from didact.types import UserError

IDS = torch.tensor([[5, 80, 90, 100, 9]])


def double(kind="llama", seed=0):
    model = tiny(kind, seed)
    model.module.double()
    return model


def logits(model):
    with torch.no_grad():
        return model.module(input_ids=IDS).logits


def trained(model, seed=0):
    """Adapter weights as if trained: LoRA's B starts at 0, (IA)^3's vectors at 1."""
    result = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if "lora_" in name or "ia3_l" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=result, dtype=p.dtype))
    model.module.eval()
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_vector_leads_from_the_base_to_the_tuned_model_and_back(kind):
    base, tuned = double(kind), double(kind, seed=1)
    before = base.fingerprint()
    tau = merge.task_vector(tuned, base)
    added, subtracted = merge.add_vector(base, tau, 1.0), merge.add_vector(tuned, tau, -1.0)
    for ours, theirs in ((added, tuned), (subtracted, base)):
        for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert base.fingerprint() == before == merge.add_vector(base, tau, 0.0).fingerprint()
    assert all((v == 0).all() for v in merge.task_vector(base, base).values())


def test_tied_embeddings_are_moved_once():
    base, tuned = double(), double(seed=1)
    assert base.config.tie_word_embeddings
    tau = merge.task_vector(tuned, base)
    assert sum("embed" in k or "lm_head" in k for k in tau) == 1
    moved = merge.add_vector(base, tau, 0.5).module
    expected = (base.module.lm_head.weight + tuned.module.lm_head.weight) / 2
    torch.testing.assert_close(moved.lm_head.weight, expected)
    assert moved.lm_head.weight.data_ptr() == moved.model.embed_tokens.weight.data_ptr()


def test_a_linear_model_is_linear_in_the_scale():
    """Return the head's output for fixed states; only the head is trained."""
    base, tuned = double("gpt2"), double("gpt2", seed=1)
    name = "transformer.wte.weight"
    tau = {name: merge.task_vector(tuned, base)[name]}
    x = torch.randn(3, 32, dtype=torch.float64)
    out = [merge.add_vector(base, tau, s).module.lm_head(x) for s in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(out[2] - out[1], out[1] - out[0])


def test_models_of_different_shape_have_no_vector():
    with pytest.raises(UserError, match="same parameters and shapes"):
        merge.task_vector(double("llama"), double("gpt2"))


def test_a_random_vector_is_as_long_in_every_tensor_and_points_elsewhere():
    tau = merge.task_vector(double(seed=1), double())
    noise = merge.random_vector(tau, 3)
    for name, t in tau.items():
        torch.testing.assert_close(noise[name].norm(), t.norm())
        assert abs(torch.cosine_similarity(noise[name].flatten(), t.flatten(), dim=0)) < 0.5 or t.numel() < 100
    again, other = merge.random_vector(tau, 3), merge.random_vector(tau, 4)
    assert all(torch.equal(noise[k], again[k]) for k in tau) and any(not torch.equal(noise[k], other[k]) for k in tau)


# --- Ext-Sub ---------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-3, 3), min_size=6, max_size=6).filter(
        lambda v: max(map(abs, v[:3])) > 0.1 < max(map(abs, v[3:]))
    )
)
def test_a_deficiency_is_orthogonal_to_the_shared_direction(values):
    bad, good = torch.tensor(values[:3], dtype=torch.float64), torch.tensor(values[3:], dtype=torch.float64)
    deficiency = merge.deficiency({"w": bad}, {"w": good})["w"]
    u = bad / bad.norm() + good / good.norm()
    if u.norm() > 1e-6:
        assert abs(deficiency @ u) < 1e-8 * (1 + deficiency.norm() * u.norm()) / min(1.0, float(u.norm()))


def test_parallel_vectors_have_no_deficiency_and_opposite_ones_are_all_of_it():
    v = torch.tensor([[1.0, 2.0, -1.0], [0.0, 3.0, 4.0]], dtype=torch.float64)
    same = merge.deficiency({"w": v}, {"w": 2.5 * v})["w"]
    torch.testing.assert_close(same, torch.zeros_like(v), rtol=0, atol=1e-12)
    torch.testing.assert_close(merge.deficiency({"w": v}, {"w": -v})["w"], v)
    assert torch.isfinite(merge.deficiency({"w": v}, {"w": 0 * v})["w"]).all()


# --- RegMean ---------------------------------------------------------------------------------


def test_regmean_of_one_is_itself_and_of_equal_grams_the_mean():
    result = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, generator=result, dtype=torch.float64) for _ in range(2))
    x, y = (torch.randn(20, 4, generator=result, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(merge.regmean([a], [x.T @ x]), a)
    torch.testing.assert_close(merge.regmean([a, b], [x.T @ x, x.T @ x]), (a + b) / 2)
    both = merge.regmean([a, b], [x.T @ x, y.T @ y])
    least = torch.linalg.lstsq(torch.cat([x, y]), torch.cat([x @ a, y @ b])).solution
    torch.testing.assert_close(both, least)


# --- adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_negated_lora_is_the_negative_product_and_negating_both_factors_is_nothing(kind):
    base = double(kind)
    adapted = trained(adapters.lora(copy_of(base), 4))
    adapted.module.double()
    plus, minus = adapters.merged(adapted), adapters.merged(merge.scale_adapter(adapted, -1.0))
    up, down = merge.task_vector(plus, base), merge.task_vector(minus, base)
    assert max(v.abs().max() for v in up.values()) > 0.1
    for name, change in up.items():
        torch.testing.assert_close(down[name], -change, rtol=0, atol=1e-12)
    both = copy_of(adapted)
    with torch.no_grad():
        for name, p in both.module.named_parameters():
            if "lora_" in name:
                p.neg_()
    torch.testing.assert_close(logits(adapters.merged(both)), logits(plus))
    torch.testing.assert_close(logits(adapters.merged(merge.scale_adapter(adapted, 0.0))), logits(base))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_ia3_negates_its_distance_from_one(kind):
    base = double(kind)
    adapted = merge.ia3(copy_of(base))
    adapted.module.double()
    torch.testing.assert_close(logits(adapted), logits(base))
    trained(adapted)
    minus = merge.scale_adapter(adapted, -1.0)
    saved = dict(minus.module.named_parameters())
    count = 0
    for name, p in adapted.module.named_parameters():
        if "ia3_l" in name:
            torch.testing.assert_close(saved[name], 2 - p)
            count += 1
    assert count >= 4
    torch.testing.assert_close(logits(adapters.merged(minus)), logits(minus))


def test_a_model_without_adapter_cannot_be_weighed():
    with pytest.raises(UserError, match="adapter"):
        merge.scale_adapter(double(), -1.0)
