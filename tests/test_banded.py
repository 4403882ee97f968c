"""Banded attention: the mask, the wrapper around transformers models, and GPT-Neo, which has it built in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from didact.data import encode
from didact.infer import generate
from didact.models import banded, build, forward, load
from didact.types import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return build.train_tokenizer(["the sun and the sea are old"], 280)


def logits(model, ids, **more):
    with torch.no_grad():
        return model.module(ids, **more).logits


@given(t=st.integers(1, 12), w=st.integers(1, 14))
def test_query_t_sees_the_last_w_positions(t, w):
    mask = banded.band(t, t, w)
    assert all(bool(mask[i, j]) == (i - w + 1 <= j <= i) for i in range(t) for j in range(t))
    assert (w < t) or torch.equal(mask, torch.ones(t, t, dtype=torch.bool).tril())


def test_behind_a_cache_the_queries_are_the_last_positions():
    assert torch.equal(banded.band(2, 7, 3), banded.band(7, 7, 3)[-2:])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_band_as_wide_as_the_text_is_dense_attention(tokenizer, arch, attention):
    dense = build.build(arch, tokenizer, d=16, layers=2, heads=2, context=32, seed=1)
    dense.module.set_attn_implementation(attention)
    ids = torch.randint(0, 270, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # padding on the left stays masked
    for extra in ({}, {"attention_mask": mask}):
        for layers in ("odd", "all"):
            wide = banded.banded(dense, 10, layers)
            assert torch.allclose(logits(wide, ids, **extra), logits(dense, ids, **extra), atol=1e-6)
        assert not torch.allclose(logits(banded.banded(dense, 3), ids, **extra), logits(dense, ids, **extra), atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize(("layers", "reach"), [("all", 4), ("odd", 12)])
def test_what_lies_beyond_the_band_has_no_influence(tokenizer, arch, layers, reach):
    """Two layers of width 3 reach back 4 positions; with the even layer dense everything is reached."""
    start = build.build(arch, tokenizer, d=16, layers=2, heads=2, context=32, seed=1)
    model = banded.banded(start, 3, layers)
    ids = torch.randint(0, 270, (1, 12), generator=torch.Generator().manual_seed(0))
    embedded = model.module.inner.get_input_embeddings()(ids).detach().requires_grad_()
    model.module.inner(inputs_embeds=embedded).logits[0, -1].sum().backward()
    felt = embedded.grad[0].abs().sum(-1) > 0
    assert felt.tolist() == [12 - 1 - j <= reach for j in range(12)]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_banded_model_scores_and_generates_alike_with_and_without_cache(tokenizer, arch):
    model = banded.banded(build.build(arch, tokenizer, d=16, layers=2, heads=2, context=64, seed=3), 3)
    ids = torch.tensor([tokenizer("the sun and the sea")["input_ids"]])
    completions = [model.module.generate(ids, max_new_tokens=8, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*completions)
    rows = [encode.row(tokenizer, "the sun and", c, "causal", 64, end=False) for c in ("the sea", "the sun are old")]
    total, _ = forward.row_logp(model, rows)
    for row, logp in zip(rows, total.tolist(), strict=True):
        whole = torch.tensor([row.prompt + row.completion])
        log_probs = logits(model, whole).log_softmax(-1)[0, len(row.prompt) - 1 : -1]
        assert log_probs.gather(-1, torch.tensor(row.completion)[:, None]).sum().item() == pytest.approx(logp, abs=1e-4)
    assert len(generate.generate(model, ["the sun", "the sea are"], max_new_tokens=4)) == 2


def test_a_banded_model_is_saved_as_didact_and_read_back(tokenizer, tmp_path):
    model = banded.banded(build.build("gpt2", tokenizer, d=16, layers=2, heads=2, context=32, seed=1), 3)
    assert model.save(tmp_path) == "didact"
    tokenizer.save_pretrained(tmp_path)
    again = load.load(tmp_path)
    ids = torch.randint(0, 270, (1, 12))
    assert torch.equal(logits(again, ids), logits(model, ids)) and again.context == 32
    inner = again.module.inner
    assert inner.get_input_embeddings().weight is inner.get_output_embeddings().weight
    assert again.tokenizer("the sun")["input_ids"] == tokenizer("the sun")["input_ids"]


def test_a_band_changes_the_fingerprint_of_the_configuration(tokenizer):
    start = build.build("llama", tokenizer, d=16, layers=2, heads=2, context=32)
    assert str(banded.banded(start, 3).config) != str(banded.banded(start, 4).config)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gpt_neo_alternates_dense_and_banded_layers_with_the_same_mask(tokenizer, layers):
    model = banded.alternating(tokenizer, d=16, layers=layers, heads=2, context=12, width=4)
    for at, block in enumerate(model.module.transformer.h):
        mask = block.attn.attention.bias[0, 0]
        assert torch.equal(mask, banded.band(12, 12, 4 if at % 2 else 12))


def test_residual_projections_start_smaller_by_the_root_of_twice_the_depth(tokenizer):
    model = banded.alternating(tokenizer, d=64, layers=8, heads=2, context=12, width=4)
    blocks = model.module.transformer.h
    for weight, std in (
        (torch.stack([b.attn.attention.out_proj.weight for b in blocks]), 0.02 / 4),
        (torch.stack([b.mlp.c_proj.weight for b in blocks]), 0.02 / 4),
        (torch.stack([b.mlp.c_fc.weight for b in blocks]), 0.02),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_models_whose_layers_are_not_found_are_refused(tokenizer):
    with pytest.raises(UserError, match="llama or gpt2"):
        banded.banded(banded.alternating(tokenizer, d=16, layers=2, heads=2, context=12), 3)
    with pytest.raises(UserError, match="width 0"):
        banded.banded(build.build("gpt2", tokenizer, d=16, layers=2, heads=2), 0)
