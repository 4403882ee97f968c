"""Cost: every forward pass of every model counts, trained tokens three times."""

import torch

from didact import baselines
from didact.infer import generate
from didact.models import build, cost
from didact.models.model import copy_of
from didact.types import Demo, Fit, Preference

TEXT = ["the cat sat on the mat and looked at the dog " * 3]


def small():
    return build.build("llama", build.train_tokenizer(TEXT, 280), d=32, layers=1, heads=2, context=64)


def test_a_forward_pass_counts_its_tokens_once_and_a_trained_one_three_times():
    model = small()
    ids = torch.ones(2, 5, dtype=torch.long)
    with cost.metered() as whole:
        with torch.no_grad(), cost.metered() as part:
            model.module(input_ids=ids)
        model.module(input_ids=ids)
    assert (part.tokens, part.flops) == (10, 2 * model.parameters * 10)
    assert (whole.tokens, whole.flops) == (40, 8 * model.parameters * 10)


def test_a_copy_is_counted_and_once_only():
    other = copy_of(copy_of(small()))
    with torch.no_grad(), cost.metered() as meter:
        other.module(input_ids=torch.ones(1, 7, dtype=torch.long))
    assert meter.tokens == 7


def test_nothing_is_counted_outside_a_meter():
    with cost.metered() as meter:
        pass
    small().module(input_ids=torch.ones(1, 7, dtype=torch.long))
    assert meter.tokens == 0


def test_sampling_is_counted():
    model = small()
    with cost.metered() as meter:
        generate.generate(model, ["the cat"], 8)
    prompt = len(model.tokenizer("the cat")["input_ids"])
    assert prompt < meter.tokens <= prompt + 8


def test_dpo_pays_for_its_reference(monkeypatch):
    monkeypatch.setenv("DIDACT_CACHE", "off")
    model, fit = small(), Fit(lr=1e-3, rows=4, steps=1, lora=0)
    pairs = [Preference(prompt="the cat", chosen=" sat on the mat", rejected=" looked at the dog")] * 4
    demos = [d for p in pairs for d in (Demo(prompt=p.prompt, completion=c) for c in (p.chosen, p.rejected))]
    with cost.metered() as dpo:
        baselines.dpo(model, pairs, fit=fit)
    with cost.metered() as sft:
        baselines.sft(model, demos, fit=fit.replace(rows=8))
    assert dpo.tokens > sft.tokens  # the same trained tokens, and a pass of the reference over all of them


def test_an_adapter_is_counted():
    model = small()
    demos = [Demo(prompt="the cat", completion=" sat on the mat")] * 4
    with cost.metered() as meter:
        baselines.sft(model, demos, fit=Fit(lr=1e-3, rows=4, steps=2, lora=2))
    assert meter.tokens > 0 and meter.tokens % 3 == 0
