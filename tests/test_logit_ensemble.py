"""An ensemble is scored like a single model: from the members' states at label tokens, in chunks."""

import pytest
import torch
from shapes import plain_logits, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from didact import compare
from didact.data import anchors as dictionaries
from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.evaluate import label_streams, structural
from didact.infer import generate
from didact.learn import footprint, generic_labels, language
from didact.models import forward, head, load, logit_ensemble
from didact.objectives import tokens as token_functions
from didact.types import Demo, Example, Fit, UserError
from didact.verbs import given
from didact.verbs.advise import contents

ROWS = [
    TokenizedExample((9, 4, 5, 6), (6, 7)),
    TokenizedExample((9, 4, 5, 6), (7, 20, 21)),  # in a tree with the first
    TokenizedExample((8,), (9, 10, 11, 12, 13)),
    TokenizedExample((14, 15, 16, 17, 18, 19, 20), (21,)),
]
FNS = {"logp": token_functions.logp, "entropy": token_functions.entropy}
exact = {"rtol": 0, "atol": 1e-10}


def ensemble(how, *kinds):
    """An ensemble of tiny models in float64; with `unheard_of`, of an architecture that no list names."""
    members = [tiny("llama" if kind == "unheard_of" else kind, seed=seed) for seed, kind in enumerate(kinds)]
    for member, kind in zip(members, kinds, strict=True):
        member.module.double()
        if kind == "unheard_of":
            member.module.config.model_type = kind
    if how == "contrast":
        return logit_ensemble.contrast(*members, 1.5)
    return logit_ensemble.guided(members[0], list(zip(members[1:], (0.8, -0.3), strict=False)))


@pytest.mark.parametrize(("how", "kinds"), [
    ("guided", ("llama", "gpt2", "gemma2")), ("guided", ("gpt_neox", "bloom")), ("guided", ("llama", "unheard_of")),
    ("contrast", ("llama", "llama")),
])  # fmt: skip
@torch.no_grad()
def test_an_ensemble_is_scored_as_its_own_forward_scores(how, kinds, monkeypatch):
    monkeypatch.setattr(forward, "CHUNK", 2 * 259)  # two tokens at a time
    result, other = ensemble(how, *kinds), ensemble("guided", "llama")
    logits, ref_logits = plain_logits(result, ROWS), plain_logits(other.members[0], ROWS)
    target, batch = torch.tensor([t for r in ROWS for t in r.completion]), collate(ROWS, result.kind, result.pad)
    for name, value in forward.tokens(result, batch, FNS).items():
        torch.testing.assert_close(value, FNS[name](logits, target), **exact)
    for one, two, expected in (
        (result, other, token_functions.kl_from(logits, target, ref_logits=ref_logits)),
        (other, result, token_functions.kl_from(ref_logits, target, ref_logits=logits)),
    ):
        states = forward.label_states(two, batch)
        kl = forward.tokens(one, batch, {"kl": token_functions.kl_from}, reference=(two, states))["kl"]
        torch.testing.assert_close(kl, expected, **exact)
    each = token_functions.logp(logits, target).split([len(r.completion) for r in ROWS])
    torch.testing.assert_close(forward.row_logp(result, ROWS)[0], torch.stack([v.sum() for v in each]), **exact)
    nested = logit_ensemble.guided(result, [(other, 0.7)])
    torch.testing.assert_close(
        forward.tokens(nested, batch)["logp"], token_functions.logp(plain_logits(nested, ROWS), target), **exact
    )


def test_the_gradient_of_an_ensemble_is_that_of_whole_logits(monkeypatch):
    monkeypatch.setattr(head, "LARGE", 1), monkeypatch.setattr(forward, "CHUNK", 2 * 259)
    target, results = torch.tensor([t for r in ROWS for t in r.completion]), []
    for scored in (lambda m: forward.tokens(m, collate(ROWS, m.kind, m.pad))["logp"],
                   lambda m: token_functions.logp(plain_logits(m, ROWS), target)):  # fmt: skip
        result = ensemble("guided", "llama", "gpt2")
        result.module.requires_grad_(False)
        weight = result.members[1].module.transformer.h[0].mlp.c_fc.weight.requires_grad_()
        scored(result).square().sum().backward()
        results.append(weight.grad)
    torch.testing.assert_close(*results, **exact)


def test_an_ensemble_that_was_trained_is_one_and_its_weights_are_part_of_what_it_is(tmp_path):
    base, arm = tiny("llama"), tiny("gpt2", seed=1)
    result, other = (logit_ensemble.guided(base, [(arm, alpha)]) for alpha in (1.0, 2.0))
    assert result.fingerprint() != other.fingerprint()  # the identity used by caches and comparisons
    rows, fit = language.single(ROWS), Fit(lr=1e-2, steps=2, rows=2)
    assert footprint.of(result, fit, 8)["total"] > footprint.of(base, fit, 8)["total"]
    trained = language.train(result, {"demos": rows}, language.nll, fit, quiet=True).model
    trained.save(tmp_path / "model")
    again = load.load(tmp_path / "model")
    folder = compare.FixedModel(name=str(tmp_path / "model"), open=lambda: again)
    assert given.alike([folder], base, {"demo": [Demo(prompt="abc", completion="d")]})  # an arm of a comparison
    assert contents.tokenizer(str(tmp_path / "model"))[1] == base.context
    assert isinstance(again, logit_ensemble.EnsembleModel) and again.fingerprint() == trained.fingerprint()
    actual, before = (forward.row_logp(m, ROWS)[0] for m in (again, result))
    torch.testing.assert_close(actual, forward.row_logp(trained, ROWS)[0])
    assert (actual > before).all()
    with pytest.raises(UserError, match="LoRA cannot be put on an ensemble"):
        language.train(result, {"demos": rows}, language.nll, fit.replace(lora=2), quiet=True)


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor made inside the block."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        cache = func(*args, **(kwargs or {}))
        for x in cache if isinstance(cache, list | tuple) else (cache,):
            self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
        return cache


LARGE = 100_000


def large(kind="gemma3", seed=0):
    """A model with a large vocabulary."""
    result = tiny(kind, seed=seed)
    result.module.resize_token_embeddings(LARGE, mean_resizing=False)
    return result


def test_a_type_no_list_names_is_scored_in_batches_whose_logits_fit(monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 1 << 22)
    model, rows = large("llama"), [TokenizedExample((9,), tuple(range(10 + k, 22 + k))) for k in range(12)]
    expected = forward.row_logp(model, rows)[0]
    model.module.config.model_type = "unheard_of"
    with Largest() as scoring:
        result = forward.row_logp(model, rows)[0]
    torch.testing.assert_close(result, expected)
    assert LARGE <= scoring.numbers <= 1 << 22 < 12 * 12 * LARGE


@pytest.mark.parametrize("how", ["guided", "contrast"])
def test_logits_of_a_large_vocabulary_are_never_whole(how):
    members = [large(seed=seed) for seed in range(2)]
    result = (
        logit_ensemble.contrast(*members)
        if how == "contrast"
        else logit_ensemble.guided(members[0], [(members[1], 1.0)])
    )
    rows = [TokenizedExample((9,), tuple(range(10 + k, 35 + k))) for k in range(12)]
    with Largest() as scoring:
        forward.row_logp(result, rows)
    assert 0 < scoring.numbers <= forward.CHUNK < 12 * 25 * LARGE
    samples, best = (
        generate.SamplingConfig(max_new_tokens=2, temperature=1.0),
        generate.SamplingConfig(max_new_tokens=2, beams=2),
    )
    with Largest() as answering:
        generate.completions(result, ["abc " * 20] * 2, 1, samples)
        generate.completions(result, ["abc " * 20] * 2, 1, best)
        result.module.generate(torch.full((2, 80), 9), torch.ones(2, 80, dtype=torch.long), max_new_tokens=2)
    assert LARGE <= answering.numbers <= 32 * LARGE < 80 * LARGE  # its embeddings are the largest


@pytest.mark.parametrize("caller", ["streams", "battery", "generic"])
def test_who_asks_for_more_than_log_probs_makes_no_whole_logits_either(caller):
    model, text = large(), bytes(range(65, 91)).decode() * 8
    with Largest() as result:
        if caller == "streams":
            label_streams.distributions(model, label_streams.streams([Example(x=[], y=["a", "b"] * 8)] * 2))
        elif caller == "battery":
            structural.right(model, [TokenizedExample((9,), (10, 11, 12))] * 64)
        else:
            blocks = dictionaries.blocks(model.tokenizer, [text], {}, 250, model.context)
            generic = generic_labels.Generic(model, large(seed=1), 5.0, True, "log_softmax", 0.0, False)
            generic_labels.labels(generic, blocks, "all", "all")
    assert LARGE <= result.numbers <= forward.CHUNK
