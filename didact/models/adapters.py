"""Adapters, by peft."""

from __future__ import annotations

import copy
from typing import Any

import torch

from didact.models.model import Model
from didact.types import UserError


def lora(model: Model, rank: int, alpha: float = 16.0, seed: int = 0) -> Model:
    """A LoRA adapter on every linear layer but the head; only it is trained. `model`'s module is wrapped in place.

    Raises:
        UserError: the model is a merged module without linear layers peft knows.
    """
    import peft

    tasks = {"seq2seq": peft.TaskType.SEQ_2_SEQ_LM, "encoder": peft.TaskType.SEQ_CLS}  # whose head is trained whole
    task = tasks.get(model.kind, peft.TaskType.CAUSAL_LM)
    scale: Any = alpha  # peft takes any number, though it says int
    config = peft.LoraConfig(r=rank, lora_alpha=scale, target_modules="all-linear", task_type=task)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            module = peft.get_peft_model(model.module, config)
        except ValueError as error:
            raise UserError(f"LoRA cannot be put on this model: {error}") from None
    return Model(module, model.processor, model.kind, model.base)


def merged(model: Model) -> Model:
    """A copy with plain weights, the adapter's update in them."""
    module: Any = copy.deepcopy(model.module)
    return Model(module.merge_and_unload().eval(), model.processor, model.kind, model.base, model.condition)


def without_base(model: Model) -> bool:
    """Whether this is an adapter that does not name a folder of its start model: alone it could not be opened."""
    config = getattr(model.module, "peft_config", {}).get("default")
    return config is not None and not config.base_model_name_or_path
