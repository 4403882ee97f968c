"""What training a model takes of memory, before it is trained."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.models import adapters, cost, forward, fused, head, prefix, spread
from didact.models.logit_ensemble import EnsembleModel
from didact.models.model import Model, sharing
from didact.parallel import launch, memory
from didact.types import Fit

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 0, "adafactor": 0}
HEAP = 1.25  # memory of a process over what is kept in it: measured on Gemma 3 270M, passes of 256 and 512 tokens
PROBE = 64  # tokens of the pass that is looked at


def of(model: Model, fit: Fit, longest: int) -> dict[str, int]:
    """Bytes by what they are for, and `total`; `longest` is the longest record in tokens.

    What a forward pass keeps for the backward pass is measured, on a few tokens of a pass that is not gone back. Where
    `fit.parallel` lays a model over the processes that a launcher started, they are those of one of them.
    """
    held = weights(model)
    student = sharing(model)
    if fit.lora and not adapters.adapted(model):
        student = adapters.lora(student, fit.lora, fit.lora_alpha, fit.seed, fit.lora_targets, 0.0, fit.dora)
    elif not fit.lora:
        student.module.requires_grad_(True)
    state = sum(_trained(p, MOMENTS[fit.optimizer]) for p in student.module.parameters() if p.requires_grad)
    tokens = max(fit.micro_tokens or forward.at_once(model), longest)
    parts = {
        "process": max(0, resident() - held) if model.device.type == "cpu" else 0,
        "weights": held if fit.lora else 2 * held,  # an adapter is trained on the ones that are there
        "gradients_and_moments": state,
        "activations": int(HEAP * tokens * _kept(student, fit)) + _logits(student, tokens),
    }
    if fit.parallel != "ddp":
        parts |= _spread(model, fit, state)
    return parts | {"total": sum(parts.values())}


def _spread(model: Model, fit: Fit, state: int) -> dict[str, int]:
    """Weights and state of one process, of a start model and a student that lie over several as `fit.parallel` says.

    While it runs a process has two layers whole beside its parts, or of a pipeline all of its stage, and what is in no
    layer; gradients of these too, where they are trained.
    """
    pp, _, tp = launch.parallel(fit.parallel) or (1, 1, 1)
    ways = launch.on_node() if fit.parallel == "hsdp" else launch.world()
    held, layers = weights(model), [sum(map(_bytes, part.parameters())) for part in spread.layers(model.module)]
    rest = held - sum(layers)
    there = (sum(layers) / pp if pp > 1 else 2 * max(layers, default=0)) / tp + rest
    start = held if pp * tp > 1 else sum(layers) / ways + rest  # a layout has it whole
    own = held / ways if pp * tp > 1 or not fit.lora else 0
    grads = 0 if fit.lora else there
    return {"weights": int(start + own + there), "gradients_and_moments": int(state / ways + grads)}


def weights(model: Model) -> int:
    """Bytes of a model's weights."""
    return sum(map(_bytes, model.module.parameters()))


def _bytes(p: Tensor) -> int:
    return p.numel() * p.element_size()


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
