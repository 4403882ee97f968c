"""What training a model takes of memory, before it is trained."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.models import adapters, cost, forward, fused, head, prefix
from didact.models.logit_ensemble import EnsembleModel
from didact.models.model import Model, sharing
from didact.parallel import memory
from didact.types import Fit

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 0, "adafactor": 0}
HEAP = 1.25  # memory of a process over what is kept in it: measured on Gemma 3 270M, passes of 256 and 512 tokens
PROBE = 64  # tokens of the pass that is looked at


def of(model: Model, fit: Fit, longest: int) -> dict[str, int]:
    """Bytes by what they are for, and `total`; `longest` is the longest record in tokens.

    What a forward pass keeps for the backward pass is measured, on a few tokens of a pass that is not gone back.
    """
    held = weights(model)
    student = sharing(model)
    if fit.lora and not adapters.adapted(model):
        student = adapters.lora(student, fit.lora, fit.lora_alpha, fit.seed, fit.lora_targets, 0.0, fit.dora)
    elif not fit.lora:
        student.module.requires_grad_(True)
    trained = [p for p in student.module.parameters() if p.requires_grad]
    tokens = max(fit.micro_tokens or forward.at_once(model), longest)
    parts = {
        "process": max(0, resident() - held) if model.device.type == "cpu" else 0,
        "weights": held if fit.lora else 2 * held,  # an adapter is trained on the ones that are there
        "gradients_and_moments": sum(_trained(p, MOMENTS[fit.optimizer]) for p in trained),
        "activations": int(HEAP * tokens * _kept(student, fit)) + _logits(student, tokens),
    }
    return parts | {"total": sum(parts.values())}


def weights(model: Model) -> int:
    """Bytes of a model's weights."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def read(model: Model, tokens: int) -> int:
    """Bytes of a forward pass over so many tokens that keeps nothing for later: a few states, and logits."""
    states = 16 * int(getattr(model.text_config, "hidden_size", 0)) * next(model.module.parameters()).element_size()
    return tokens * states + _logits(model, tokens)


def rate(model: Model) -> float:
    """Tokens a second of a forward pass, here and now; what is trained costs three of them. 0 where none is made."""
    if model.kind != "causal":
        return 0.0
    ids = torch.zeros((1, min(2 * PROBE, model.context)), dtype=torch.long, device=model.device)
    with torch.no_grad(), cost.unmetered():
        model.module(input_ids=ids[:, :2])
        began = time.monotonic()
        float(model.module(input_ids=ids).logits[0, -1, 0])  # waits for an accelerator
    return float(ids.numel() / max(time.monotonic() - began, 1e-6))


def _trained(weight: Tensor, moments: int) -> int:
    """Of one weight: its gradient and moments, in float32 at least, and a float32 copy of a narrower one."""
    each = memory.kept(weight.element_size(), moments)
    return weight.numel() * (each.gradients + each.optimizer)


def _kept(model: Model, fit: Fit) -> int:
    """Bytes a token that a forward pass leaves to the backward pass."""
    count = min(PROBE, model.context)
    batch = collate([TokenizedExample((0,), (0,) * count)], model.kind, model.pad, model.start).to(model.device)
    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    found: dict[int, int] = {}

    def seen(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    wide = torch.autocast(model.device.type, torch.bfloat16, enabled=fit.precision == "bfloat16")
    fewer = fused.layers(model.module, fit.parallel == "ddp")
    with wide, fewer, torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        states = forward.label_states(model, batch)
    size = sum(found.values()) // count
    if not fit.checkpointing:
        return size
    layers = int(getattr(model.text_config, "num_hidden_layers", 1))
    return size // layers + layers * int(model.text_config.hidden_size) * states.element_size()


def _logits(model: Model, tokens: int) -> int:
    """Bytes of the logits that are there at once."""
    width = int(getattr(model.text_config, "vocab_size", 0))
    members = len(model.members) if isinstance(model, EnsembleModel) else 1
    if members == 1 and width >= head.LARGE:
        output = prefix.inner_of(model).get_output_embeddings()
        if not any(p.requires_grad for p in output.parameters()):
            return 4 * tokens * min(width, head.columns(tokens, model.device))
    return 4 * 4 * members * min(tokens * width, forward.CHUNK)  # and their softmax, and the gradients of both


def resident() -> int:
    """Bytes of this process now."""
    told = Path("/proc/self/statm")
    return int(told.read_text(encoding="utf-8").split()[1]) * 4096 if told.exists() else 0
