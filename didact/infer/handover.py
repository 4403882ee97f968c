"""Weights in the form a server loads: their change as a LoRA adapter where that captures it, or a whole folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from didact import files
from didact.models import adapters
from didact.models.model import Model, copy_of
from didact.types import Fit

FAINT = 1e-6  # tolerated error of a matrix's change, relative to the matrix's norm; float32 itself rounds to 6e-8
MOST = 256  # the largest rank of an adapter
SMALL = 2048  # matrices up to this side get an exact SVD
Factors = tuple[Tensor, Tensor]  # B (out, r) and A (r, in)


def difference(model: Model, base: Model) -> dict[str, Factors] | None:
    """Return LoRA factors of every linear layer whose matrix differs from the base's; None where no adapter suffices.

    They are computed from the weights, however often adapters were trained and merged on the way, or in which process.
    Both must be plain models.
    """
    before, after = base.module.state_dict(), model.module.state_dict()
    if before.keys() != after.keys() or any(before[k].shape != after[k].shape for k in before):
        return None
    changed = {k for k in before if not torch.equal(before[k], after[k].to(before[k]))}
    linear = {f"{name}.weight": name for name, part in base.module.named_modules() if isinstance(part, nn.Linear)}
    if not changed <= linear.keys():
        return None
    out = {}
    for key in sorted(changed):
        factors = _factors(after[key].double() - before[key].double(), float(before[key].double().norm()))
        if factors is None:
            return None
        out[linear[key]] = factors
    return out


def _factors(change: Tensor, size: float) -> Factors | None:
    """Return factors of the lowest rank whose error is at most `FAINT` of `size`; None where it exceeds `MOST`."""
    if min(change.shape) <= SMALL:
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        residual = change.new_zeros(())
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, q=min(MOST + 16, *change.shape), niter=4)
        v = v.T
        residual = (change - (u * s) @ v).square().sum()
    tail = torch.cat([s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)]) + residual  # [r]: squared error at rank r
    sufficient = (tail.sqrt() <= FAINT * size).nonzero()
    if not len(sufficient) or (rank := int(sufficient[0])) > MOST:
        return None
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()


def write_adapter(factors: Mapping[str, Factors], folder: Path, base: str) -> None:
    """Write an adapter in peft's format; all layers have one rank, padded with zeros."""
    from peft import LoraConfig, TaskType
    from safetensors.torch import save_file

    rank = max(1, *(b.shape[1] for b, _ in factors.values()))
    tensors = {}
    for name, (b, a) in factors.items():
        missing = rank - b.shape[1]
        tensors[f"base_model.model.{name}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, missing)).cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = nn.functional.pad(b, (0, missing)).cpu().contiguous()
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(factors), task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base, inference_mode=True,
    )  # fmt: skip
    with files.new_folder(folder) as fresh:
        save_file(tensors, str(fresh / "adapter_model.safetensors"))
        config.save_pretrained(str(fresh))


def unadapted(model: Model) -> Model:
    """Return a copy of the base of a model with an adapter; another model unchanged."""
    if not adapters.adapted(model):
        return model
    module: Any = copy_of(model).module
    return Model(module.unload(), model.processor, model.kind, model.base)


@torch.no_grad()
def rehearsed(model: Model, fit: Fit, adapter: bool) -> Model:
    """Return the model after a random update like those of training, large enough to be distinguished from it.

    It tests loading before anything is trained: vLLM on a CPU, for one, reloads all but the head of a model with tied
    embeddings.
    """
    trial = copy_of(adapters.merged(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if adapter:
            trial = adapters.lora(trial, fit.lora, fit.lora_alpha, 0, fit.lora_targets)
        perturbed = [p for name, p in trial.module.named_parameters() if not adapter or "lora_B" in name]
        for p in perturbed:
            size = 0.02 if adapter else 0.1 * float(p.float().square().mean().sqrt())
            p.add_(size * torch.randn(p.shape).to(p))
    return adapters.merged(trial)
