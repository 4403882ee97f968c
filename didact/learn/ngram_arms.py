"""Arms of a comparison of n-gram heads: the same model with heads and without, trained on the same rows.

`heads` looks up what followed an n-gram; `control` has the same weights and looks nothing up; `uniform` looks up the
mean of all earlier states; `plain` adds no weights to the model. New heads of all arms start from the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from didact.data.encode import TokenizedExample
from didact.data.streams import MicroBatch
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.models import build, forward, recurrent
from didact.models.insert import Place, insert
from didact.models.model import Model, copy_of
from didact.models.ngram_heads import Lookup, NGramHead
from didact.types import Fit, UserError

Arm = Literal["heads", "control", "uniform", "plain"]
Arch = Literal[
    "transformer", "learned-positions", "gru", "lstm", "linear-attention", "retnet", "rwkv", "hyena", "mamba"
]
BUILT: dict[str, build.Arch] = {"transformer": "llama", "learned-positions": "gpt2", "mamba": "mamba"}
LOOKUPS: dict[str, Lookup] = {"heads": "ngram", "control": "zero", "uniform": "uniform"}


def start(arch: Arch, tokenizer: Any, layers: int, width: int, window: int, seed: int) -> Model:
    """Build a new model, of our layers or of transformers' Llama, GPT-2 or Mamba, with one attention head per 16 of
    its width."""
    if kind := BUILT.get(arch):
        heads = max(1, width // 16)
        if width % heads:
            raise UserError(f"width = {width}: must be a multiple of 16, or less")
        return build.build(kind, tokenizer, width, layers, heads, context=window + 1, tied=False, seed=seed)
    layer: Any = "fast-weights" if arch == "linear-attention" else arch
    return recurrent.build(tokenizer, width, layers, layer, window + 1, seed)


def arm(
    name: Arm, model: Model, sizes: Sequence[int], at: int, zero: bool, seed: int, boundary: int | None = None
) -> Model:
    """Copy a model for an arm: heads of these n-gram sizes in a row behind block `at`, initialised at `zero` or not."""
    if name == "plain":
        return copy_of(model)
    width = int(model.text_config.hidden_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = [(Place(at), NGramHead(width, n, LOOKUPS[name], boundary, zero)) for n in sizes]
    return insert(model, heads)


def train(
    name: Arm, model: Model, rows: Sequence[TokenizedExample], fit: Fit, alone: bool, only: Sequence[int] | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainResult:  # fmt: skip
    """Train a copy of an arm to predict rows.

    Args:
        name: name of the arm.
        model: model of the arm, from `arm`.
        rows: training rows.
        fit: how to train.
        alone: train only the inserted heads; the rest of the model is frozen.
        only: tokens whose loss counts; all by default. The loss is divided by the number of all tokens.
        hooks: called around every step.
    """
    if fit.lora:
        raise UserError("n-gram heads cannot be trained with LoRA: leave lora at 0")
    ids = torch.tensor(sorted(only)) if only is not None else None

    def loss(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        logp = forward.tokens(student, micro.tokens)["logp"]
        counts: Tensor | float = 1.0 if ids is None else torch.isin(micro.tokens.target, ids.to(logp.device)).to(logp)
        return {"nll": Term(-(logp * counts).sum(), f"{micro.stream}.tokens")}

    model = copy_of(model)
    if alone:
        body: Any = model.module
        body.base.requires_grad_(False)
    trained = language.train(model, {"text": language.single(rows)}, loss, fit, hooks=hooks, name=name)
    trained.model.module.requires_grad_(True)
    return trained
