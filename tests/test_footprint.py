"""The memory a run will need, reported before it starts."""

import pytest
import torch
from shapes import tiny

from didact.learn import footprint
from didact.models import adapters, forward, head
from didact.models.model import sharing
from didact.types import Fit


def told(model, **more):
    return footprint.of(model, Fit(micro_tokens=64, **more), 20)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_weights_are_there_once_under_an_adapter_and_layers_run_again_keep_little(kind):
    model = tiny(kind)
    before, size = model.fingerprint(), 4 * model.parameters
    whole, lora, again = told(model), told(model, lora=4), told(model, lora=4, checkpointing=True)
    assert (whole["weights"], lora["weights"]) == (2 * size, size)
    assert whole["gradients_and_moments"] == 3 * size
    adapter = sum(p.numel() for n, p in adapters.lora(sharing(model), 4).module.named_parameters() if "lora_" in n)
    assert lora["gradients_and_moments"] == 3 * 4 * adapter
    logits = 16 * 64 * model.text_config.vocab_size
    assert 0 < again["activations"] - logits < 0.8 * (lora["activations"] - logits)
    assert lora["total"] == sum(v for k, v in lora.items() if k != "total")
    assert model.fingerprint() == before and all(p.requires_grad for p in model.module.parameters())


def test_logits_of_a_large_vocabulary_are_there_once_where_the_head_is_not_trained(monkeypatch):
    model = tiny("llama")
    small = told(model, lora=4)["activations"]
    monkeypatch.setattr(head, "LARGE", 1)
    once = told(model, lora=4)["activations"]
    assert small - once == 3 * 4 * 64 * 259
    monkeypatch.setattr(head, "BLOCK", 1), monkeypatch.setattr(head, "COLUMNS", 32)
    assert once - told(model, lora=4)["activations"] == 4 * 64 * (259 - 32)
    assert forward.CHUNK > 64 * 259 and torch.is_grad_enabled()
