"""Estimates of the memory that training a model needs, before it is trained."""

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
HEAP = 1.25  # memory of a process / bytes of its tensors: measured on Gemma 3 270M, passes of 256 and 512 tokens
PROBE = 64  # tokens of the pass that is measured


def of(model: Model, fit: Fit, longest: int) -> dict[str, int]:
    """Return bytes by purpose, and their `total`; `longest` is the longest record in tokens.

    What a forward pass saves for the backward pass is measured on a few tokens, without running the backward pass.
    Where `fit.parallel` shards a model over the processes of a launcher, the bytes are those of one process.
    """
    weight_bytes = weights(model)
    student = sharing(model)
    if fit.lora and not adapters.adapted(model):
        student = adapters.lora(student, fit.lora, fit.lora_alpha, fit.seed, fit.lora_targets, 0.0, fit.dora)
    elif not fit.lora:
        student.module.requires_grad_(True)
    state = sum(_trained_bytes(p, MOMENTS[fit.optimizer]) for p in student.module.parameters() if p.requires_grad)
    tokens = max(fit.micro_tokens or forward.at_once(model), longest)
    parts = {
        "process": max(0, resident() - weight_bytes) if model.device.type == "cpu" else 0,
        "weights": weight_bytes if fit.lora else 2 * weight_bytes,  # an adapter needs no copy of the weights
        "gradients_and_moments": state,
        "activations": int(HEAP * tokens * _saved_bytes(student, fit)) + _logit_bytes(student, tokens),
    }
    if fit.parallel != "ddp":
        parts |= _sharded(model, fit, state)
    return parts | {"total": sum(parts.values())}


def _sharded(model: Model, fit: Fit, state: int) -> dict[str, int]:
    """Bytes per process of weights and training state, where `fit.parallel` shards the start model and the student.

    While it computes, a process has two whole layers besides its shards (of a pipeline its whole stage) and the weights
    outside of layers; also their gradients, where they are trained.
    """
    pp, _, tp = launch.parallel(fit.parallel) or (1, 1, 1)
    parts = launch.on_node() if fit.parallel == "hsdp" else launch.world()
    total, layers = weights(model), [sum(map(_bytes, part.parameters())) for part in spread.layers(model.module)]
    outside = total - sum(layers)
    gathered = (sum(layers) / pp if pp > 1 else 2 * max(layers, default=0)) / tp + outside
    start = total if pp * tp > 1 else sum(layers) / parts + outside  # stages and parts load the whole start model
    shard = total / parts if pp * tp > 1 or not fit.lora else 0
    grads = 0 if fit.lora else gathered
    return {"weights": int(start + shard + gathered), "gradients_and_moments": int(state / parts + grads)}


def weights(model: Model) -> int:
    """Bytes of a model's weights."""
    return sum(map(_bytes, model.module.parameters()))


def _bytes(p: Tensor) -> int:
    return p.numel() * p.element_size()


def read(model: Model, tokens: int) -> int:
    """Bytes of a forward pass over `tokens` tokens that saves nothing for a backward pass: a few states, and logits."""
    states = 16 * int(getattr(model.text_config, "hidden_size", 0)) * next(model.module.parameters()).element_size()
    return tokens * states + _logit_bytes(model, tokens)


def rate(model: Model) -> float:
    """Measured tokens per second of a forward pass (a training step costs three); 0 for models that are not causal."""
    if model.kind != "causal":
        return 0.0
    ids = torch.zeros((1, min(2 * PROBE, model.context)), dtype=torch.long, device=model.device)
    with torch.no_grad(), cost.unmetered():
        model.module(input_ids=ids[:, :2])
        start = time.monotonic()
        float(model.module(input_ids=ids).logits[0, -1, 0])  # waits for an accelerator
    return float(ids.numel() / max(time.monotonic() - start, 1e-6))


def _trained_bytes(weight: Tensor, moments: int) -> int:
    """Bytes of a weight's gradient and moments, in float32 at least, and of the float32 copy of a narrower weight."""
    per_weight = memory.state_of_weight(weight.element_size(), moments)
    return weight.numel() * (per_weight.gradients + per_weight.optimizer)


def _saved_bytes(model: Model, fit: Fit) -> int:
    """Bytes per token that a forward pass saves for the backward pass."""
    count = min(PROBE, model.context)
    batch = collate([TokenizedExample((0,), (0,) * count)], model.kind, model.pad, model.start).to(model.device)
    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    saved: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=fit.precision == "bfloat16")
    fused_layers = fused.layers(model.module, fit.parallel == "ddp")
    with autocast, fused_layers, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        states = forward.label_states(model, batch)
    size = sum(saved.values()) // count
    if not fit.checkpointing:
        return size
    layers = int(getattr(model.text_config, "num_hidden_layers", 1))
    return size // layers + layers * int(model.text_config.hidden_size) * states.element_size()


def _logit_bytes(model: Model, tokens: int) -> int:
    """Bytes of the logits that are in memory at once."""
    width = int(getattr(model.text_config, "vocab_size", 0))
    members = len(model.members) if isinstance(model, EnsembleModel) else 1
    if members == 1 and width >= head.LARGE:
        output = prefix.inner_of(model).get_output_embeddings()
        if not any(p.requires_grad for p in output.parameters()):
            return 4 * tokens * min(width, head.columns(tokens, model.device))
    return 4 * 4 * members * min(tokens * width, forward.CHUNK)  # and their softmax, and the gradients of both


def resident() -> int:
    """Bytes of memory that this process uses now."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="utf-8").split()[1]) * 4096 if statm.exists() else 0
