"""Megatron-Turing NLG's pre-training with pipeline, data and tensor parallelism, at any size (Smith et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from didact.bounds import Count, NonNegative, Positive, Share
from didact.learn import layouts, pretrain, three_d
from didact.learn.fit import Hook
from didact.models import build, load
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Result, Text, UserError

SIZES = {  # layers, width, heads, rows of the full batch, peak rate; the smaller ones from the predecessors' papers
    "1.7B": (24, 2304, 24, 512, 2e-4),
    "8.3B": (72, 3072, 24, 512, 1.5e-4),
    "17B": (78, 4256, 28, 512, 1.5e-4),
    "530B": (105, 20480, 128, 1920, 5e-5),
}


@method(
    "megatron-turing",
    paper="Using DeepSpeed and Megatron to Train Megatron-Turing NLG 530B",
    year=2022,
    source="arXiv:2201.11990",
    gives=("models", "findings"),
    capabilities=("train",),
    kinds=("causal",),
    presets={
        name: {"layers": layers, "hidden": hidden, "heads": heads, "arch": "gpt2", "fit.rows": rows, "fit.lr": lr}
        for name, (layers, hidden, heads, rows, lr) in SIZES.items()
    },
)
def megatron_turing(
    corpus: Sequence[Text],
    model: Model | None = None,
    *,
    layout: str | None = None,
    pipeline: Literal["1f1b", "gpipe"] = "1f1b",
    arch: Literal["llama", "gpt2"] = "llama",
    layers: Count = 12,
    hidden: Count = 768,
    heads: Count = 12,
    context: Count = 2048,
    vocabulary: Count = 51_200,
    total_tokens: Positive | None = None,
    first_rows: Count = 32,
    more_rows: Count = 32,
    ramp: NonNegative = 12e9,
    warmup_tokens: NonNegative = 1e9,
    decay_tokens: NonNegative = 340e9,
    floor: Share = 0.1,
    fit: Fit = Fit(lr=5e-5, rows=1920, betas=(0.9, 0.95), clip=1.0, weight_decay=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Pre-train a language model over many devices: pipeline stages x data-parallel copies x tensor-parallel parts.

    Every process divides the SUM of its losses by the label tokens of the whole batch, and gradients are summed, so any
    layout takes the same steps as one process, also with rows of unequal lengths. With n tokens seen, of `total_tokens`
    N, and every count below times N / 270e9:

        rate     lr n / warmup_tokens, then a cosine to floor lr at decay_tokens
        batch    first_rows, and more_rows more at a time, up to fit.rows after `ramp` tokens
        weights  normal, deviation sqrt(1 / (3 hidden)), over sqrt(2 layers) in projections to the residual stream

    `torchrun --nproc_per_node 4 -m didact run megatron-turing --corpus text.jsonl --layout 2x1x2`. Stages run by
    torch's pipelining, copies by FSDP2, parts by DTensor; checkpoints are sharded, and a run can resume from them in
    any other layout. The saved result is one plain model.

    Args:
        corpus: documents, shuffled and cut into full windows; `didact prepare` makes one.
        model: a causal model to continue from, with its own shape and tokenizer; by default one is built, in parts.
        layout: `PPxDPxTP`, stages by copies by parts; by default the planner's best for the number of processes.
        pipeline: pipeline schedule: one forward, one backward, or all forward first.
        arch: architecture of a new model; llama can be split into parts, gpt2 into stages and copies.
        layers: number of layers of a new model.
        hidden: its width.
        heads: its attention heads.
        context: tokens per window.
        vocabulary: size of the byte-level BPE trained on the corpus.
        total_tokens: tokens of the run; by default `fit.steps` steps, else `fit.epochs` passes over the corpus.
        first_rows: rows of the first batch; not scaled.
        more_rows: rows that each increase adds to the batch.
        ramp: tokens over which the batch grows, for a run of 270 billion.
        warmup_tokens: tokens of the warm-up, for a run of 270 billion.
        decay_tokens: tokens until the rate reaches its floor, for a run of 270 billion.
        floor: final rate, as a share of its peak.
        fit: peak rate, rows of the full batch, Adam, clip, decay; its schedule and warm-up are not used.
        hooks: called around every step, on every process with its own stage.

    Raises:
        UserError: no text, a layout that is not legal, a width the heads do not divide, the loss became NaN.
    """
    if fit.lora:
        raise UserError("pre-training trains every weight: leave lora at 0")
    device = model.device if model else load.device_of(None)
    if model is None:
        if hidden % heads:
            raise UserError(f"hidden = {hidden}, heads = {heads}: heads must divide hidden")
        tokenizer = build.train_tokenizer((t.text for t in corpus), vocabulary)
        with torch.device("meta"):
            model = build.build(arch, tokenizer, hidden, layers, heads, context=context)
        initial_weights = three_d.drawn(model.module, fit.seed)
    else:
        initial_weights = dict(model.module.named_parameters()).__getitem__
    window = min(context, model.context)
    grid = layouts.chosen(model, layout, fit, window, device)
    rows = pretrain.packed(model, [t.text for t in corpus], window, fit.seed)
    recipe_options: dict[str, Any] = {
        "first": first_rows * window, "more": more_rows, "ramp": ramp, "warmup": warmup_tokens, "end": decay_tokens,
        "floor": floor,
    }  # fmt: skip
    if fit.steps is not None and total_tokens is None:
        recipe = pretrain.recipe_for(fit.steps, window, fit.rows, three_d.Stepwise, **recipe_options)
    else:
        total = total_tokens or fit.epochs * len(rows) * window
        recipe = three_d.Stepwise(total=total, window=window, rows=fit.rows, **recipe_options)
    trained = three_d.train(model, rows, recipe, fit, grid, device, hooks, schedule=pipeline, values=initial_weights)
    size = sum(p.numel() for p in model.module.parameters())
    return pretrain.result(trained, recipe, len(rows), layout=str(grid), parameters=size)
