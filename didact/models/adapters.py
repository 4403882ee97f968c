"""LoRA and other adapters, with peft."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from didact.models.logit_ensemble import EnsembleModel
from didact.models.model import Model
from didact.parallel import parted
from didact.types import UserError


def lora(
    model: Model,
    rank: int,
    alpha: float = 16.0,
    seed: int = 0,
    targets: Sequence[str] = (),
    dropout: float = 0.0,
    dora: bool = False,
) -> Model:
    """Put a trainable LoRA (or DoRA) adapter on the layers `targets`, by default on every linear layer but the head.

    `model`'s module is wrapped in place.

    A model that already is a LoRA adapter is trained further, at its own rank.

    Raises:
        UserError: the model has no linear layers that peft knows, is an adapter of another kind, or an ensemble.
    """
    import peft

    if adapted(model):
        module: Any = ready(model, rank).module
        module.peft_config[module.active_adapter].inference_mode = False
        module.set_adapter(module.active_adapter)
        return model
    if isinstance(model, EnsembleModel):
        raise UserError("LoRA cannot be put on an ensemble: train one of its members, or all weights (lora = 0)")
    if dora and parted.layers_of(model.module):
        raise UserError("dora needs norms of whole weights, but this model is sharded over processes: load it whole")
    tasks = {"seq2seq": peft.TaskType.SEQ_2_SEQ_LM, "encoder": peft.TaskType.SEQ_CLS}  # peft also trains its whole head
    task = tasks.get(model.kind, peft.TaskType.CAUSAL_LM)
    scale: Any = alpha  # annotated int, but peft takes any number
    config = peft.LoraConfig(
        r=rank, lora_alpha=scale, lora_dropout=dropout, use_dora=dora, task_type=task,
        target_modules=list(targets) or "all-linear",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            with parted.hidden(model.module):
                module = peft.get_peft_model(model.module, config)
        except ValueError as error:
            raise UserError(f"LoRA cannot be put on this model: {error}") from None
    if (base := Path(module.active_peft_config.base_model_name_or_path or "")).is_dir() and base.parts:
        module.active_peft_config.base_model_name_or_path = str(base.resolve())
    return Model(module, model.processor, model.kind, model.base)


def adapted(model: Model) -> bool:
    """Whether the model is an adapter on a start model."""
    return bool(getattr(model.module, "peft_config", None))


def ready(model: Model, rank: int) -> Model:
    """Return the model to train: an adapter is merged (a copy) if `rank` is 0, else LoRA trains it further.

    Raises:
        UserError: the adapter is not LoRA and cannot be trained further, or it cannot be merged.
    """
    if not adapted(model) or not rank:
        return merged(model)
    module: Any = model.module
    if (kind := module.active_peft_config.peft_type.value) != "LORA":
        raise UserError(f"the start model is a {kind} adapter, which LoRA cannot train further: leave lora at 0")
    return model


def describe(model: Model, rank: int) -> str:
    """Describe what `ready` does with an adapter, in one line; empty for other models."""
    if not adapted(model):
        return ""
    module: Any = model.module
    base = module.active_peft_config.base_model_name_or_path
    if not rank:
        return f"an adapter on {base}: merged into it, and all weights are trained (--lora would train the adapter)"
    own = module.active_peft_config.r
    suffix = "" if own == rank else f", whose rank stays {own}: --lora {rank} does not change it"
    return f"an adapter on {base}: LoRA trains this adapter further{suffix}"


def merged(model: Model) -> Model:
    """Return a copy with the adapter merged into plain weights; a model without an adapter unchanged.

    Raises:
        UserError: the adapter is not an update of weights, or those are quantised.
    """
    if not adapted(model):
        return model
    if model.quantized:
        raise UserError(f"an adapter on weights in {model.quantized} cannot be merged: load it without quantisation")
    module: Any = copy.deepcopy(model.module)
    if not hasattr(module, "merge_and_unload") or module.active_peft_config.is_prompt_learning:
        kind = module.active_peft_config.peft_type.value
        raise UserError(f"a {kind} adapter does not update weights and cannot be merged: train from its start model")
    _untie(module.get_base_model())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")  # they are untied above
        try:
            _merge_layers(module)
            plain = module.merge_and_unload().eval().requires_grad_(True)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"the adapter cannot be merged: {str(error).splitlines()[0]}: --lora 1 trains it further"
            ) from None
    ends = plain.get_input_embeddings(), plain.get_output_embeddings()
    if None not in ends and ends[0].weight is not ends[1].weight:  # else loading would tie them again
        plain.config.tie_word_embeddings = plain.config.get_text_config().tie_word_embeddings = False
    plain.name_or_path = model.loaded_from or ""  # base of an adapter put on it later
    return Model(plain, model.processor, model.kind, model.base, model.condition, model.loaded_from)


def _merge_layers(module: nn.Module) -> None:
    """Merge an adapter into sharded layers, gathering one at a time."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in parted.layers_of(module):
        with parted.opened(layer):
            for part in layer.modules():
                if isinstance(part, BaseTunerLayer):
                    part.merge()


def placeless(model: Model) -> Model:
    """Clear the path of a changed model, so that an adapter put on it does not name that folder as its base."""
    module: Any = model.module
    module.name_or_path = ""
    return model


def without_base(model: Model) -> bool:
    """Whether the model is an adapter that names no folder of its start model, so that it cannot be opened alone."""
    config = getattr(model.module, "peft_config", {}).get("default")
    return config is not None and not config.base_model_name_or_path


def _untie(inner: Any) -> None:
    """Untie the head from the embedding if an adapter changes either."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in (inner.get_input_embeddings(), inner.get_output_embeddings()) if layer is not None]
    if any(isinstance(layer, BaseTunerLayer) for layer in layers) and len(layers) == 2:
        head = getattr(layers[1], "base_layer", layers[1])
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
