"""A small encoder of programs of `worlds.code`, trained to restore tokens that were replaced by random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import ModernBertConfig, ModernBertForMaskedLM

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data.streams import IGNORE, Tensors, padded
from didact.learn import fit as loop
from didact.models import build
from didact.models.model import Model
from didact.types import Fit, Text
from didact.worlds import code

EXCHANGED = 0.4  # share of tokens replaced by random ones in training
WORLD = code.Code()
OPTIONS: dict[str, Any] = {"rank": 16, "probe.lr": 1e-2, "probe.epochs": 10, "test": 0.25, "valid": 0.2}


def problem(seed: int) -> Problem:
    """A small encoder, and programs it was not trained on."""
    texts = WORLD.programs(seed, 4_000)
    return Problem(model=reader(texts[700:], seed, 300), data={"texts": texts[:700]}, options=OPTIONS)


def reader(texts: Sequence[Text], seed: int, steps: int) -> Model:
    """Train an encoder (three layers, width 64) on texts, or load it from the cache."""
    fit = Fit(lr=4e-3, steps=steps, rows=32, schedule="linear", warmup_steps=30, betas=(0.9, 0.98), seed=seed)
    return lab.cached_model(lambda: _train(texts, fit), [t.text for t in texts], fit)


def _train(texts: Sequence[Text], fit: Fit) -> Model:
    tokenizer = build.train_tokenizer((t.text for t in texts[:1000]), 300)
    rows = [tokenizer(t.text)["input_ids"] for t in texts]
    ids = torch.tensor(sorted({i for row in rows for i in row}))
    pad = tokenizer.pad_token_id
    special = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "cls", "sep")}
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        config = ModernBertConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=64, pad_token_id=pad, **special,
            global_attn_every_n_layers=1,  # type: ignore[call-arg]  # transformers turns it into layer types
        )  # fmt: skip
        module = ModernBertForMaskedLM(config)

    def batch_at(step: int) -> Tensors:
        rng = torch.Generator().manual_seed(fit.seed * 1_000_003 + step)
        targets = padded([rows[i] for i in torch.randint(len(rows), (fit.rows,), generator=rng)], pad)
        mask = targets != pad
        exchanged = (torch.rand(targets.shape, generator=rng) < EXCHANGED) & mask
        corrupted = torch.where(exchanged, ids[torch.randint(len(ids), targets.shape, generator=rng)], targets)
        return Tensors({"ids": corrupted, "there": mask.long(), "right": torch.where(mask, targets, IGNORE)})

    loop.fit(module, batch_at, _denoising_loss, fit, steps=fit.total_steps(0), warmup=fit.warmup_count(0), quiet=True)
    return Model(module, tokenizer, "masked")


def _denoising_loss(module: nn.Module, batch: Tensors) -> loop.Terms:
    """Cross-entropy to the original tokens, averaged over a row's tokens, then over rows."""
    logits = module(input_ids=batch["ids"], attention_mask=batch["there"]).logits
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch["right"], ignore_index=IGNORE, reduction="none")
    return {"right": loop.Term((losses.sum(1) / batch["there"].sum(1)).sum(), "rows")}
