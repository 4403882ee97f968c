"""Weights as a server takes them: what changed as a LoRA adapter, where that is all that changed, or a whole folder."""

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

FAINT = 1e-6  # of a matrix's norm: what is left out of its change; float32 itself rounds to 6e-8 of every weight
MOST = 256  # ranks of an adapter
SMALL = 2048  # up to this side a matrix is taken apart whole
Factors = tuple[Tensor, Tensor]  # B (out, r) and A (r, in)


def difference(model: Model, base: Model) -> dict[str, Factors] | None:
    """LoRA factors of every linear layer whose matrix differs from the base's; None where no adapter tells them apart.

    Read off the weights, so that it does not matter how often adapters were trained and merged on the way, or in which
    process. Both are plain models.
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
        found = _factors(after[key].double() - before[key].double(), float(before[key].double().norm()))
        if found is None:
            return None
        out[linear[key]] = found
    return out


def _factors(change: Tensor, size: float) -> Factors | None:
    """The fewest ranks that leave no more than `FAINT` of `size` out."""
    if min(change.shape) <= SMALL:
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        rest = change.new_zeros(())
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, q=min(MOST + 16, *change.shape), niter=4)
        v = v.T
        rest = (change - (u * s) @ v).square().sum()
    tail = torch.cat([s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)]) + rest  # [r]: what r ranks leave out
    enough = (tail.sqrt() <= FAINT * size).nonzero()
    if not len(enough) or (rank := int(enough[0])) > MOST:
        return None
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()


def write_adapter(factors: Mapping[str, Factors], folder: Path, base: str) -> None:
    """An adapter as peft writes it; all layers of one rank, padded with zeros."""
    from peft import LoraConfig, TaskType
    from safetensors.torch import save_file

    rank = max(1, *(b.shape[1] for b, _ in factors.values()))
    tensors = {}
    for name, (b, a) in factors.items():
        more = rank - b.shape[1]
        tensors[f"base_model.model.{name}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, more)).cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = nn.functional.pad(b, (0, more)).cpu().contiguous()
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(factors), task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base, inference_mode=True,
    )  # fmt: skip
    with files.new_folder(folder) as fresh:
        save_file(tensors, str(fresh / "adapter_model.safetensors"))
        config.save_pretrained(str(fresh))


def unadapted(model: Model) -> Model:
    """An adapter's start model, a copy; another model as it is."""
    if not adapters.adapted(model):
        return model
    module: Any = copy_of(model).module
    return Model(module.unload(), model.processor, model.kind, model.base)


@torch.no_grad()
def rehearsed(model: Model, fit: Fit, adapter: bool) -> Model:
    """The model after an update such as training will make, far enough from it to be told apart.

    To see it handed over before anything is trained: vLLM on a CPU, for one, reloads all but the head of a model whose
    embeddings are its head.
    """
    trial = copy_of(adapters.merged(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if adapter:
            trial = adapters.lora(trial, fit.lora, fit.lora_alpha, 0, fit.lora_targets)
        moved = [p for name, p in trial.module.named_parameters() if not adapter or "lora_B" in name]
        for p in moved:
            size = 0.02 if adapter else 0.1 * float(p.float().square().mean().sqrt())
            p.add_(size * torch.randn(p.shape).to(p))
    return adapters.merged(trial)
