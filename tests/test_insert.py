"""Mixers in a user's decoder: identity at first, the same with and without cache, saved and loaded."""

import copy

import pytest
import torch
from shapes import byte_tokenizer, tiny

from didact.data import encode
from didact.infer import generate
from didact.models import forward, insert, load
from didact.models.insert import Place
from didact.models.ngram_heads import NGramHead
from didact.types import UserError

ARCHS = ["llama", "gpt2", "gemma3", "mistral", "opt", "gpt_neox"]
TEXT = "a b c a b d a b c a b d a b "


def with_heads(arch, at=0, zero=False, where="block", **more):
    model = tiny(arch, **more)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        heads = [(Place(at, where), NGramHead(32, n, zero=zero)) for n in (1, 2)]
    for _, head in heads if not zero else []:  # strong enough to choose the next token
        head.found.weight.data.mul_(8)
    return model, insert.insert(model, heads)


def logits(model, ids, **more):
    with torch.no_grad():
        return model.module(input_ids=ids, **more).logits


def encoded(*texts):
    return torch.tensor([byte_tokenizer()(text)["input_ids"] for text in texts])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("position", ["block", "attention"])
def test_heads_begun_at_zero_change_nothing_and_then_they_learn(arch, position):
    plain, model = with_heads(arch, zero=True, where=position)
    ids = encoded(TEXT)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    model.module(input_ids=ids).logits.square().mean().backward()
    assert model.module.mixers[1].found.weight.grad.abs().sum() > 0
    changed = with_heads(arch, where=position)[1]
    assert not torch.allclose(logits(changed, ids), logits(plain, ids), atol=1e-2)


@pytest.mark.parametrize(("at", "arch"), enumerate(ARCHS))
def test_greedy_decoding_is_the_same_with_and_without_cache(arch, at):
    """In a padded batch, token by token and with beams; each row alone generates the same as in the batch."""
    plain, model = with_heads(arch, at % 2)
    short = "b a b c b a"
    ids = encoded(TEXT)
    padded = torch.cat([torch.zeros(1, ids.shape[1] - len(short), dtype=torch.long), encoded(short)], 1)
    both, mask = torch.cat([ids, padded]), torch.ones(2, ids.shape[1], dtype=torch.long)
    mask[1, : -len(short)] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    completions = [model.module.generate(both, attention_mask=mask, use_cache=c, **options) for c in (True, False)]
    assert torch.equal(*completions)
    beams = [model.module.generate(ids, num_beams=3, use_cache=c, **options) for c in (True, False)]
    assert torch.equal(*beams)
    for row, text in zip(completions[0], (TEXT, short), strict=True):
        assert torch.equal(row[ids.shape[1] :], model.module.generate(encoded(text), **options)[0, len(text) :])
    plain_output = plain.module.generate(both, attention_mask=mask, **options)
    assert not torch.equal(plain_output, completions[0])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_cache_that_is_cut_and_continued_gives_the_same_logits(arch):
    model = with_heads(arch)[1]
    ids = encoded(TEXT + TEXT)
    whole = logits(model, ids)
    with torch.no_grad():
        out = model.module(input_ids=ids[:, :20], use_cache=True)
        out.past_key_values.crop(-7)
        rest = model.module(input_ids=ids[:, 13:], past_key_values=out.past_key_values, use_cache=True)
    assert torch.allclose(rest.logits, whole[:, 13:], atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_padding_and_packed_documents_are_not_looked_into(arch):
    model = with_heads(arch)[1]
    ids = encoded(TEXT)
    padded_right = torch.nn.functional.pad(ids, (0, 9), value=ids[0, 0].item())
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 9))
    alone = logits(model, ids)
    assert torch.allclose(logits(model, padded_right, attention_mask=mask)[:, : ids.shape[1]], alone, atol=1e-5)
    outputs = []
    model.module.mixers[0].register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[1].document))
    logits(model, torch.cat([ids, ids], 1), position_ids=torch.arange(ids.shape[1]).repeat(2)[None])
    assert outputs[0].tolist() == [[0] * ids.shape[1] + [1] * ids.shape[1]]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_saved_as_didact_and_read_back(arch, tmp_path):
    plain, model = with_heads(arch)
    assert model.save(tmp_path / "model") == "didact"
    again = load.load(tmp_path / "model", device="cpu")
    assert torch.equal(logits(again, encoded(TEXT)), logits(model, encoded(TEXT)))
    assert again.context == plain.context and again.generation_ends == plain.generation_ends
    completions = [generate.generate(m, [TEXT, "a b"], max_new_tokens=4) for m in (again, model)]
    assert completions[0] == completions[1]


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_scores_are_those_of_the_models_own_logits(arch):
    """The head runs on label tokens alone, capped where the decoder caps."""
    model = with_heads(arch)[1]
    rows = [encode.windows(byte_tokenizer(), [text], 60)[0] for text in (TEXT, TEXT[3:])]
    logp, _ = forward.row_logp(model, rows)
    for row, value in zip(rows, logp.tolist(), strict=True):
        ids = torch.tensor([[*row.prompt, *row.completion]])
        expected = logits(model, ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
        assert value == pytest.approx(expected, abs=1e-3)


def test_a_copy_has_hooks_of_its_own():
    model = with_heads("llama")[1]
    ids, other = encoded(TEXT), copy.deepcopy(model.module)
    with torch.no_grad():
        for weight in other.mixers.parameters():
            weight.zero_()
    assert not torch.allclose(other(input_ids=ids).logits, logits(model, ids), atol=1e-2)
    other(input_ids=ids[:, :3])
    assert torch.equal(logits(model, ids), logits(copy.deepcopy(model), ids))


def test_what_heads_cannot_read_is_refused_in_one_line():
    model = with_heads("llama")[1]
    ids = encoded(TEXT)
    with pytest.raises(UserError, match="token ids"):
        model.module(inputs_embeds=model.module.get_input_embeddings()(ids))
    with pytest.raises(UserError, match="packed masks"):
        model.module(input_ids=ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1]))
    with pytest.raises(UserError, match="a cache that grows"):
        model.module.generate(ids, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(UserError, match="start from an empty cache"):
        cache = tiny("llama").module(input_ids=ids, use_cache=True).past_key_values
        model.module(input_ids=ids[:, :1], past_key_values=cache)
    with pytest.raises(UserError, match="no block 2"):
        with_heads("llama", at=2)
    with pytest.raises(UserError, match="kind 'seq2seq'"):
        insert.insert(tiny("t5"), [])
    with pytest.raises(UserError, match="no attention layer"):
        insert.attentions(tiny("mamba").module)
