"""Fused adapters and norms on frozen weights: values and gradients equal those of peft and transformers."""

import copy

import pytest
import torch
from shapes import tiny

from didact.data.encode import TokenizedExample
from didact.learn import language
from didact.models import adapters, forward, fused, head
from didact.models.model import sharing
from didact.types import Fit

ROWS = [TokenizedExample((1, 5, 9), (7, 30, 8, 2)), TokenizedExample((1, 60), (61, 62)), TokenizedExample((4,), (9, 2))]
USED = {"llama": {"_LowRank", "_Normed"}, "qwen2": {"_LowRank", "_Normed"}, "gemma3": {"_LowRank", "_Normed"},
        "gpt_neox": {"_LowRank"}, "gpt2": set()}  # fmt: skip


@pytest.fixture
def used_functions(monkeypatch):
    """Records which fused functions were used; every vocabulary counts as large."""
    monkeypatch.setattr(head, "LARGE", 1)
    names = set()
    for name in ("_LowRank", "_Normed"):
        apply = getattr(fused, name).apply
        monkeypatch.setattr(getattr(fused, name), "apply", lambda *a, f=apply, n=name: (names.add(n), f(*a))[1])
    return names


def student(kind, **more):
    """A non-zero adapter, in training mode."""
    result = adapters.lora(sharing(tiny(kind)), 4, 10.0, **more)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, p in result.module.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn_like(p))
    result.module.train()
    return result


def gradients(model, on):
    """Return log-probs and the gradients of the trained weights, one by one."""
    batch = language.Batches({"a": language.Stream.of(ROWS, 3)}, 0, model.kind, model.pad, model.start)(0)
    (micro,) = batch.split(None)
    model.module.zero_grad()
    with fused.layers(model.module, on):
        logp = forward.tokens(model, micro.tokens)["logp"]
        (logp * torch.linspace(-1, 1, len(logp))).sum().backward()
    return {"logp": logp.detach()} | {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", USED)
def test_they_have_the_values_and_gradients_of_plain_layers(kind, used_functions):
    model = student(kind)
    plain = gradients(model, False)
    assert not used_functions
    with fused.layers(model.module):
        used_functions.clear()  # entering the block tries the norms out
        ours = gradients(model, False)
    assert used_functions == USED[kind]
    assert plain.keys() == ours.keys() and all("lora_" in n for n in plain if n != "logp")
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-4, atol=2e-5, msg=name)
    assert not any("forward" in vars(part) for part in model.module.modules())


def test_gradients_are_those_of_finite_differences():
    def numbers(*shape, trained=True):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=trained)

    torch.manual_seed(0)
    x, weight, bias, down, up = numbers(2, 3, 5), numbers(4, 5, trained=False), numbers(4), numbers(2, 5), numbers(4, 2)
    for b in (None, bias.detach()):
        assert torch.autograd.gradcheck(
            lambda *a, b=b: fused._LowRank.apply(a[0], weight, b, *a[1:], 2.5), (x, down, up)
        )
    fixed = x.detach()
    assert torch.autograd.gradcheck(lambda *a: fused._LowRank.apply(fixed, weight, None, *a, 2.5), (down, up))
    gain = numbers(5, trained=False)
    assert torch.autograd.gradcheck(lambda x: fused._Normed.apply(x, gain, 0.1), (x,))


def linear(model):
    return next(part for part in model.module.modules() if hasattr(part, "lora_A"))


def dropped(model):
    linear(model).lora_dropout["default"] = torch.nn.Dropout(0.5)


def hooked(model):
    linear(model).base_layer.register_forward_hook(lambda layer, inputs, out: 2 * out)


def trained(model):
    linear(model).base_layer.weight.requires_grad_(True)


def off(model):
    linear(model)._disable_adapters = True


@pytest.mark.parametrize("change", [dropped, hooked, trained, off])
def test_what_asks_for_more_is_peft_s_own(change, used_functions):
    model = student("llama")
    change(model)
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        results.append(gradients(model, on))
    assert used_functions and results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=2e-4, atol=2e-5, msg=name)


def test_dora_and_narrower_numbers_are_left_alone(used_functions):
    model = student("llama", dora=True)
    with fused.layers(model.module):
        used_functions.clear()
        with torch.autocast("cpu", torch.bfloat16):
            gradients(model, False)
        assert "_LowRank" not in used_functions


def test_a_small_vocabulary_and_a_trained_norm_stay_as_they_were(used_functions, monkeypatch):
    model = student("llama")
    norms = {n: p for n, p in model.module.named_parameters() if "norm" in n}
    for p in norms.values():
        p.requires_grad_(True)
    with fused.layers(model.module):
        used_functions.clear()
        assert norms.keys() <= gradients(model, False).keys() and "_Normed" not in used_functions
    monkeypatch.setattr(head, "LARGE", 1000)
    with fused.layers(model.module):
        assert not any("forward" in vars(part) for part in model.module.modules())


def test_a_copy_made_inside_runs_itself(used_functions):
    model = student("llama")
    with fused.layers(model.module):
        twin = copy.deepcopy(model.module)
        layer = linear(model)
        mine = next(part for part in twin.modules() if hasattr(part, "lora_A"))
        x = torch.ones(1, layer.in_features)
        mine.lora_B["default"].weight.data += 1
        assert not torch.equal(mine(x), layer(x))


def test_a_training_on_a_large_vocabulary_is_that_on_a_small_one(used_functions, monkeypatch):
    fit = Fit(lr=1e-2, steps=3, rows=3, lora=4)
    large = language.train(tiny("gemma3"), {"a": language.single(ROWS)}, language.nll, fit, quiet=True)
    assert used_functions == {"_LowRank", "_Normed"}
    monkeypatch.setattr(head, "LARGE", 1 << 15)
    small = language.train(tiny("gemma3"), {"a": language.single(ROWS)}, language.nll, fit, quiet=True)
    for mine, other in zip(large.model.module.parameters(), small.model.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
