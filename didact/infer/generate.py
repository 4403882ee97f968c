"""Text from prompts, batched by length, through the model's own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from didact.data import encode
from didact.models.model import Model


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 64,
) -> list[str]:
    """One completion per prompt, in the prompts' order; greedy at temperature 0.

    Prompts are cut on the left so that prompt and completion fit the context; where even half of it is
    too short for the completion, the completion is cut.
    """
    tokenizer, context = model.tokenizer, model.context
    room = max(context - max_new_tokens, context // 2) if model.kind == "causal" else context
    ids = [encode.prompt_ids(tokenizer, p, model.kind)[-room:] for p in prompts]
    out = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (-len(ids[i]), i))
    was = model.module.training
    model.module.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for at in range(0, len(order), rows):
            group = order[at : at + rows]
            width = max(1, *(len(ids[i]) for i in group))
            length = min(max_new_tokens, context - width) if model.kind == "causal" else max_new_tokens
            # Padding goes left, where generation does not look; every row's last token is its prompt's.
            tokens = torch.tensor([[model.pad] * (width - len(ids[i])) + ids[i] for i in group], device=model.device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in group], device=model.device)
            how = (
                {"do_sample": True, "temperature": temperature, "top_p": top_p}
                if temperature > 0
                else {"do_sample": False}
            )
            module: Any = model.module  # every transformers model generates
            made = module.generate(
                input_ids=tokens, attention_mask=mask, max_new_tokens=length, pad_token_id=model.pad, **how
            )
            new = made if model.kind == "seq2seq" else made[:, width:]
            for i, text in zip(group, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                out[i] = text.strip()
    model.module.train(was)
    return out
