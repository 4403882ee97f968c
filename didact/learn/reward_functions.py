"""Rewards that a user can name: a function, a reward model's folder, a language model that answers yes or no."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from didact import files
from didact.infer import functions, yesno
from didact.infer.yesno import Question
from didact.learn import rewards
from didact.models import load, opening, places
from didact.models.model import Model
from didact.types import Reward, UserError


def reward_of(source: str | Reward, option: str = "reward") -> Reward:
    """Return a reward from `module:function`, from a folder, or from a function itself.

    A folder holds a sequence-classification model, or a language model that answers yes or no (which `ilf` saves
    as `model-reward`).

    Raises:
        UserError: there is no such module, function or folder; `option` names the option.
    """
    if not isinstance(source, str):
        return functions.checked(source, option)
    if source and Path(source).is_dir():
        return by_yesno(load.load(source), source) if _is_language_model(Path(source)) else reward_model(source)
    return functions.checked(
        functions.import_function(source, option, "module:function or a reward model's folder"), source
    )


def by_yesno(model: Model, name: str = "reward", question: Question = yesno.GOOD) -> Reward:
    """P(yes, it is a good answer) of a language model that was trained for this question."""

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        fields = [{"prompt": str(p), "completion": c} for p, c in zip(prompts, completions, strict=True)]
        return yesno.ask(model, [question], fields)

    return functions.checked(reward, name)


def reward_model(folder: str) -> Reward:
    """The single logit of a transformers sequence-classification model for prompt and completion."""
    return functions.checked(functools.partial(rewards.score, opened(folder)), folder)


def opened(folder: str, device: str | None = None) -> Model:
    """Open a reward model's folder as a model of kind `encoder`, on `device` (by default the accelerator, if any).

    Raises:
        UserError: there is none, it has several outputs, or the device cannot be used.
    """
    path = Path(folder)
    adapter = path.is_dir() and bool(places.adapter_config(path))
    base = places.base_of(path) if adapter else folder
    try:
        module: Any
        module, _ = opening.open_pretrained(
            "AutoModelForSequenceClassification", base, **({"num_labels": 1} if adapter else {})
        )
        tokenizer: Any = (load.tokenizer_of(path) if adapter else None) or opening.open_pretrained(
            "AutoTokenizer", base
        )
        if adapter:  # the head is saved with the adapter
            module = load.put_on(module, path, base).merge_and_unload()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a reward model: {str(error).splitlines()[0]}") from None
    if module.config.num_labels != 1:
        raise UserError(f"{folder}: a reward model has one output, this one {module.config.num_labels}")
    load.check_whole(folder)
    module.to(load.device_of(device))
    return Model(rewards.padded(module, tokenizer).eval(), tokenizer, "encoder", folder)


def is_reward_model(folder: Path) -> bool:
    """Whether a folder's configuration names a sequence classifier."""
    return any(name.endswith("ForSequenceClassification") for name in _architectures(folder))


def _is_language_model(folder: Path) -> bool:
    """Whether a folder's configuration names a language model."""
    return any(n.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for n in _architectures(folder))


def _architectures(folder: Path) -> list[str]:
    if adapter := places.adapter_config(folder):
        is_classifier = adapter.get("task_type") == "SEQ_CLS"
        return ["AdapterForSequenceClassification"] if is_classifier else _architectures(Path(places.base_of(folder)))
    try:
        return [str(name) for name in files.read_json(folder / "config.json").get("architectures") or ()]
    except (OSError, UserError, AttributeError, TypeError):
        return []
