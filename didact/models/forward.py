"""The label-token forward pass: one row per label token, the head run on label tokens only.

`tokens(model, batch, fns)` gives `{name: (N,)}` for token functions `f(logits (n, V), target (n,), **columns)`,
mapped in checkpointed chunks so that the `(N, V)` logits never exist at once when V is large.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from didact.data.encode import Row
from didact.data.streams import Tokens, by_length, collate
from didact.models import cache, load
from didact.models.model import Model
from didact.objectives import reduce
from didact.objectives import tokens as token_functions

Tokenwise = Callable[..., Tensor]

# Architectures whose head is exactly `output_embeddings(last hidden state)`, proven by the parity
# test. T5 scales tied states. Every other type takes the plain path through its own forward.
LINEAR_HEAD = {"llama", "gpt2", "qwen2", "qwen3", "mistral", "opt", "gpt_neox", "bloom"}
CHUNK = 1 << 24  # logits held at once by one chunk (64 MiB in float32)


def label_states(model: Model, batch: Tokens) -> Tensor:
    """What the head is applied to at the label tokens: hidden states `(N, d)`, or logits `(N, V)` on the plain path.

    `logits_of` turns either into logits.
    """
    inner = _inner(model.module)
    if model.kind == "seq2seq":
        out = model.module(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids,
            use_cache=False,
        )
        return out.logits[batch.mask]
    if _linear_head(model):
        out = inner.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return out.last_hidden_state[batch.mask]
    return model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[
        batch.mask
    ]


def logits_of(model: Model, states: Tensor) -> Tensor:
    """Logits `(n, V)` from what `label_states` gave."""
    head: Any = _inner(model.module).get_output_embeddings() if _linear_head(model) else nn.Identity()
    return head(states)


def tokens(
    model: Model,
    batch: Tokens,
    fns: Mapping[str, Tokenwise] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    reference: tuple[Model, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Token functions at every label token of a batch.

    Args:
        model: any causal or seq2seq model.
        batch: padded rows; padding and prompt positions cost the head nothing.
        fns: named token functions; log-prob of the label by default.
        columns: per-token tensors `(N, ...)` handed to every function by name.
        reference: a frozen model and its `label_states` on the same batch; every function then gets
            `ref_logits (n, V)`, made chunk by chunk.

    Returns:
        `{name: (N,)}`, in row-major order of the label tokens.
    """
    named = dict(fns or {"logp": token_functions.logp})
    states, target = label_states(model, batch), batch.target
    held = dict(columns or {})
    if reference is not None:
        held["__ref"] = reference[1]

    def piece(states: Tensor, target: Tensor, held: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {k: v for k, v in held.items() if k != "__ref"}
        if reference is not None:
            with torch.no_grad():
                given["ref_logits"] = logits_of(reference[0], held["__ref"])
        logits = logits_of(model, states)
        return tuple(fn(logits, target, **given) for fn in named.values())

    width = int(getattr(model.config, "vocab_size", None) or states.shape[-1])
    size = max(1, CHUNK // width)
    if len(target) <= size:
        return dict(zip(named, piece(states, target, held), strict=True))
    parts: list[tuple[Tensor, ...]] = []
    for i in range(0, len(target), size):
        part = (states[i : i + size], target[i : i + size], {k: v[i : i + size] for k, v in held.items()})
        parts.append(checkpoint(piece, *part, use_reentrant=False) if torch.is_grad_enabled() else piece(*part))
    return {name: torch.cat([p[i] for p in parts]) for i, name in enumerate(named)}


@torch.no_grad()
def score(
    model: Model, rows: Sequence[Row], fns: Mapping[str, Tokenwise] | None = None, batch_tokens: int = 8192
) -> Iterator[tuple[list[int], Tokens, dict[str, Tensor]]]:
    """Token functions on fixed rows without gradient, in length-sorted batches: `(row indices, batch, values)`."""
    was = model.module.training
    model.module.eval()
    try:
        for group in by_length([r.size for r in rows], batch_tokens):
            batch = collate([rows[i] for i in group], model.kind, model.pad, model.start).to(model.device)
            yield group, batch, tokens(model, batch, fns)
    finally:
        model.module.train(was)


def row_logp(model: Model, rows: Sequence[Row], batch_tokens: int = 8192) -> tuple[Tensor, Tensor]:
    """Log-prob of every completion, SUM over its tokens, and its token count: `(rows,), (rows,)`, on the CPU."""
    total, count = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    for group, batch, values in score(model, rows, batch_tokens=batch_tokens):
        index = torch.tensor(group)
        total[index] = reduce.row_sum(values["logp"].double(), batch.row, len(group)).cpu()
        count[index] = reduce.row_count(batch.row, len(group)).double().cpu()
    return total, count


def cached_row_logp(model: Model, rows: Sequence[Row]) -> Tensor:
    """`row_logp`'s sums, kept on disk under weights, configuration, rows, dtype and this source; says so when read."""
    dtype = str(next(model.module.parameters()).dtype)
    source = Path(__file__).read_bytes()
    setup = f"{model.config} {getattr(model.module, 'peft_config', None)}"  # rotary base, LoRA's scale: not in weights
    kept = cache.Entry("logp", load.fingerprint(model), setup, repr(rows), dtype, source)
    if (found := kept.read()) is not None:
        print(f"reference log-probs of {len(rows)} rows: from the cache {kept.path}", file=sys.stderr)
        return found["logp"]
    total, _ = row_logp(model, rows)
    kept.write({"logp": total})
    return total


def _inner(module: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the module itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _linear_head(model: Model) -> bool:
    return model.kind == "causal" and getattr(model.config, "model_type", None) in LINEAR_HEAD
