"""Training arms: `sft` and `dpo` against TRL's trainers, whole runs of both (tokenising, data loading, steps).

A peer's arms are its settings; ours is compared with the best of them. Both train a fresh
model of the same shape on the same texts with the same batch and optimiser; peak memory is counted
above what was resident when the model was loaded.
"""

from __future__ import annotations

import tempfile
from typing import Any

from bench import problems
from didact import baselines
from didact.models.model import Model
from didact.types import Demo, Fit, Preference

ROWS, STEPS = 16, 12
FIT = Fit(lr=1e-4, rows=ROWS, steps=STEPS, schedule="linear")


def sft_ours(loss_on: Any = "completion") -> dict[str, Any]:
    model = problems.llama()
    demos = [Demo(prompt=p, completion=c) for p, c in problems.ragged(model, ROWS * STEPS)]
    tokens = _tokens(model, [(d.prompt, d.completion) for d in demos])
    items = len(demos) if loss_on == "completion" else tokens
    warm = FIT.replace(steps=1)
    return problems.measured(
        lambda: baselines.sft(model, demos, loss_on=loss_on, fit=FIT).history[-1]["loss"],
        items,
        lambda: baselines.sft(model, demos, loss_on=loss_on, fit=warm),
    )


def sft_trl(loss_on: str = "completion", **settings: Any) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = problems.llama()
    pairs = problems.ragged(model, ROWS * STEPS)
    tokens = _tokens(model, [(p, c) for p, c in pairs])
    data = Dataset.from_list([{"prompt": p + " ", "completion": c} for p, c in pairs])

    def trainer(steps: int) -> Any:
        options = {"completion_only_loss": loss_on == "completion", "max_length": 1024, **settings}
        config = SFTConfig(**common(steps), **options)
        return SFTTrainer(model.module, args=config, train_dataset=data, processing_class=model.tokenizer)

    # With packing, one step holds more than 16 rows: train one epoch, so that the data are the same.
    max_steps = -1 if settings.get("packing") else STEPS
    items = len(pairs) if loss_on == "completion" else tokens
    return problems.measured(lambda: trainer(max_steps).train().training_loss, items, lambda: trainer(1).train())


def dpo_ours(vocabulary: int = problems.VOCABULARY, steps: int = STEPS, cached: bool = True) -> dict[str, Any]:
    """`cached`: reference log-probs are cached (a second run on the same data); else they are computed here."""
    model = problems.llama(vocabulary=vocabulary)
    pairs = _preferences(model, ROWS * steps)
    fit = FIT.replace(steps=steps)
    if cached:
        return problems.measured(
            lambda: baselines.dpo(model, pairs, fit=fit).history[-1]["loss"],
            len(pairs),
            lambda: baselines.dpo(model, pairs, fit=fit.replace(steps=1)),
        )
    return problems.measured(
        lambda: baselines.dpo(model, pairs, fit=fit).history[-1]["loss"],
        len(pairs),
        lambda: baselines.dpo(model, pairs[:ROWS], fit=fit.replace(steps=1)),
    )


def dpo_trl(
    vocabulary: int = problems.VOCABULARY, steps: int = STEPS, precompute: bool = False, **settings: Any
) -> dict[str, Any]:
    """`precompute`: the reference pass runs before the clock starts, as in `dpo_ours(cached=True)`."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = problems.llama(vocabulary=vocabulary)
    pairs = _preferences(model, ROWS * steps)
    rows = [{"prompt": p.prompt + " ", "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    data = Dataset.from_list(rows)

    module: Any = model.module
    module.config._name_or_path = problems.saved(model)  # where the trainer loads its reference from

    def trainer(count: int) -> Any:
        config = DPOConfig(**common(count), precompute_ref_log_probs=precompute, max_length=1024, **settings)
        return DPOTrainer(model.module, args=config, train_dataset=data, processing_class=model.tokenizer)

    trainer(1).train()
    timed = trainer(steps)
    if precompute:
        timed.get_train_dataloader()
    return problems.measured(lambda: timed.train().training_loss, len(pairs))


def common(steps: int, rows: int = ROWS) -> dict[str, Any]:
    import torch

    return {
        "output_dir": tempfile.mkdtemp(prefix="didact-bench-"), "per_device_train_batch_size": rows,
        "max_steps": steps, "num_train_epochs": 1, "learning_rate": 1e-4, "lr_scheduler_type": "linear",
        "report_to": "none", "save_strategy": "no", "logging_steps": STEPS, "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(), "bf16": False, "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
    }  # fmt: skip


def _preferences(model: Model, count: int) -> list[Preference]:
    return [Preference(prompt=p, chosen=w, rejected=l) for p, w, l in problems.ragged(model, count, 2)]


def _tokens(model: Model, pairs: list[tuple[str, str]]) -> int:
    return sum(len(model.tokenizer(f"{p} {c}")["input_ids"]) for p, c in pairs)
