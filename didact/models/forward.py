"""The label-token forward pass: one row per label token, the head run on label tokens only.

`tokens(model, batch, fns)` returns `{name: (N,)}` for token functions `f(logits (n, V), target (n,), **columns)`,
mapped in checkpointed chunks so that the `(N, V)` logits never exist at once when V is large. Rows that share a
prefix share its pass: in a batch by a tree mask (`data.packing`), in scoring also by a cached prefix or a `KVCache`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from didact import progress
from didact.data import packing
from didact.data.encode import TokenizedExample
from didact.data.packing import Packing, Tree
from didact.data.streams import Tokens, by_length, collate, of_trees
from didact.models import cache, head, masks, prefix, spread
from didact.models.kv_cache import KVCache
from didact.models.logit_ensemble import EnsembleModel
from didact.models.model import Model
from didact.objectives import reduce
from didact.objectives import tokens as token_functions

Tokenwise = Callable[..., Tensor]
Batch = tuple[list[int], Tokens, prefix.Past | None]  # row indices, their tensors, the cached prefix they continue

# Architectures whose logits are exactly `output_embeddings(last hidden state)`, proven by the parity
# test. T5 scales tied states. Every other type takes the plain path through its own forward.
LINEAR_HEAD = {"llama", "gpt2", "qwen2", "qwen3", "mistral", "opt", "gpt_neox", "bloom", "mamba"}
# The same, then c tanh(logits / c) if the configuration sets a cap c.
CAPPED_HEAD = {"gemma2", "gemma3_text"}
# Exact in values and gradients under a four-dimensional mask with explicit positions, proven by the tests of
# trees. Bloom computes its alibi from a two-dimensional mask, mamba's state depends on all earlier tokens.
TREE = {"llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "mistral", "gemma2", "gemma3_text"}
# Encoder-decoders whose encoder, decoder and head are run separately (T5 scales the states of a tied head): rows of
# one prompt share one encoder output. Proven by both.
APART = {"t5"}
CHUNK = 1 << 24  # logits held at once by one chunk (64 MiB in float32)


def label_states(
    model: Model, batch: Tokens, past: prefix.Past | None = None, hide: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Return the head's input at the label tokens: hidden states `(N, d)`, or logits `(N, V)` on the plain path.

    `logits_of` turns either into logits. An ensemble's are its members' side by side. A batch laid out in trees is
    unrolled for a model that takes no tree mask. `past` is the prefix that its rows continue (if of different lengths,
    the batch must be laid out in trees). `hide` is the range of the share of positions that are hidden at random from
    each position (`masks.forgetful`); it needs a model of `takes_trees`.
    """
    if isinstance(model, EnsembleModel):
        parts = [label_states(member, batch, past, hide) for member in model.members]
        return torch.cat(parts, -1) if _reads_head(model) else _combined(model, parts)
    inner = prefix.inner_of(model)
    if model.kind == "seq2seq":
        return _at_labels(_decoded(model, batch), batch)
    if model.kind == "masked":
        return _masked_logits(model, batch.unrolled())
    if batch.reach is not None and past is None and not supports_tree_masks(model):
        batch = batch.unrolled()
    visible = None
    if hide[1] > 0:
        batch = batch.unrolled().chained()
        visible = masks.forgetful(batch, hide)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if past is not None:
        inputs["past_key_values"] = past.store
        inputs["attention_mask"] = nn.functional.pad(batch.attention_mask, (past.position.shape[1], 0), value=1)
    if batch.reach is not None and supports_tree_masks(model):
        positions = past.position if past is not None else None
        inputs["attention_mask"] = masks.tree(batch, inner.config, _score_dtype(model), positions, visible)
        inputs["position_ids"] = batch.position_ids
    if _reads_head(model):
        return _at_labels(inner.base_model(**inputs).last_hidden_state, batch)
    logits = model.module(**inputs).logits
    return _at_labels(logits[:, logits.shape[1] - batch.input_ids.shape[1] :], batch)  # a learned prompt comes first


def _masked_logits(model: Model, batch: Tokens) -> Tensor:
    """Logits of a masked language model with the mask token at all label tokens at once."""
    width = batch.input_ids.shape[1]
    row, column = batch.at // width, batch.at % width + 1
    ids, mask = (nn.functional.pad(v, (0, 1)) for v in (batch.input_ids, batch.attention_mask))
    ids[row, column] = model.tokenizer.mask_token_id
    mask[row, column] = 1
    logits: Tensor = model.module(input_ids=ids, attention_mask=mask).logits
    return logits[row, column]


def supports_tree_masks(model: Model) -> bool:
    """Whether rows of a batch for this model may share prefixes under a tree mask."""
    if isinstance(model, EnsembleModel):
        return all(map(supports_tree_masks, model.members))
    config: Any = getattr(prefix.inner_of(model), "config", None)
    return (
        model.kind == "causal"
        and getattr(config, "model_type", None) in TREE
        and getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
        and not prefix.learned_prompt(model)
        and prefix.fixed_positions(config)
    )


def packing_of(model: Model, pack: bool = True) -> Packing | None:
    """Return how rows are packed for this model; None if every row is separate."""
    return Packing(6 * int(model.text_config.hidden_size), pack=pack) if supports_tree_masks(model) else None


def at_once(model: Model) -> int:
    """Return the fastest batch size in physical tokens: on a CPU so few that a layer's work on them stays in cache.

    Measured at a hidden size of 128: 1,024 tokens train 25 % faster than 4,096. At 640 (Gemma 3 270M) 256 take the time
    of 512 and half of its memory.
    """
    if model.device.type != "cpu":
        return 16_384
    return max(256, (1 << 17) // int(getattr(model.text_config, "hidden_size", 64)))


def logits_of(model: Model, states: Tensor) -> Tensor:
    """Return logits `(n, V)` for the result of `label_states`."""
    if not _reads_head(model):
        return states
    if isinstance(model, EnsembleModel):
        return _combined(model, states.split([_width(member) for member in model.members], -1))
    inner = prefix.inner_of(model)
    logits = inner.get_output_embeddings()(states)
    cap = getattr(inner.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def linear_head(model: Model, states: Tensor) -> Tensor | None:
    """Return the head's weight `(V, d)` if logits are only its product with such states; else None."""
    inner = prefix.inner_of(model)
    if (
        isinstance(model, EnsembleModel)
        or not _reads_head(model)
        or getattr(inner.config, "final_logit_softcapping", None) is not None
    ):
        return None
    layer = inner.get_output_embeddings()
    return layer.weight if head.linear(layer, states) else None


def tokens(
    model: Model,
    batch: Tokens,
    fns: Mapping[str, Tokenwise] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    reference: tuple[Model, Tensor] | None = None,
    hide: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Tensor]:
    """Compute token functions at every label token of a batch.

    Args:
        model: any causal or seq2seq model.
        batch: padded rows; the head is not run at padding and prompt positions.
        fns: named token functions; log-prob of the label by default.
        columns: per-token tensors `(N, ...)` handed to every function by name.
        reference: a frozen model and its `label_states` on the same batch; every function then gets
            `ref_logits (n, V)`, computed chunk by chunk.
        hide: range of the share of positions hidden at random.

    Returns:
        `{name: (N,)}`, in row-major order of the label tokens.
    """
    functions = dict(fns or {"logp": token_functions.logp})
    return of_states(model, label_states(model, batch, hide=hide), batch.target, functions, columns, reference)


def of_states(
    model: Model,
    states: Tensor,
    target: Tensor,
    functions: Mapping[str, Tokenwise],
    columns: Mapping[str, Tensor] | None = None,
    reference: tuple[Model, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Compute token functions from the result of `label_states`, in chunks: `tokens` for callers that hold states."""
    extras = dict(columns or {})
    if reference is not None:
        extras["__ref"] = reference[1]

    def piece(states: Tensor, target: Tensor, extras: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        kwargs: dict[str, Any] = {k: v for k, v in extras.items() if k != "__ref"}
        if reference is not None:
            with torch.no_grad():
                kwargs["ref_logits"] = logits_of(reference[0], extras["__ref"])
        logits = logits_of(model, states)
        return tuple(fn(logits, target, **kwargs) for fn in functions.values())

    width = int(getattr(model.text_config, "vocab_size", None) or states.shape[-1])
    size = max(1, CHUNK // width)
    if width >= head.LARGE and _reads_head(model) and not _needs_gradient(model, extras):
        weight = linear_head(model, states)
        if [*functions.values()] == [token_functions.logp] and not extras and weight is not None:
            return {name: head.logp(states, weight, target) for name in functions}
        if torch.is_grad_enabled() and states.requires_grad:
            return dict(zip(functions, head.values(piece, states, target, extras, size), strict=True))
    if len(target) <= size:
        return dict(zip(functions, piece(states, target, extras), strict=True))
    # Split, not sliced: the gradient of each slice would be as large as the whole.
    pieces = zip(*(v.split(size) for v in (states, target, *extras.values())), strict=True)
    parts: list[tuple[Tensor, ...]] = []
    for states_part, target_part, *columns_part in pieces:
        part = (states_part, target_part, dict(zip(extras, columns_part, strict=True)))
        parts.append(checkpoint(piece, *part, use_reentrant=False) if torch.is_grad_enabled() else piece(*part))
    return {name: torch.cat([p[i] for p in parts]) for i, name in enumerate(functions)}


@torch.no_grad()
def score(
    model: Model,
    rows: Sequence[TokenizedExample],
    fns: Mapping[str, Tokenwise] | None = None,
    batch_tokens: int | None = None,
    kv_cache: KVCache | None = None,
) -> Iterator[tuple[list[int], Tokens, dict[str, Tensor]]]:
    """Compute token functions on rows without gradient, in length-sorted batches: `(row indices, batch, values)`.

    Rows may come in any order: those with a common prefix share the pass over it, in trees if the model takes a tree
    mask, and a long prefix of many rows is run once and kept as keys and values. Prompts of a seq2seq model are
    encoded once.

    Args:
        model: any causal or seq2seq model.
        rows: rows to score.
        fns: named token functions; log-prob of the label by default.
        batch_tokens: most physical tokens at once; four times `at_once` by default, since nothing is kept for backward.
        kv_cache: rows that this model has read before: new ones continue from them and are added, if the model takes
            tree masks.
    """
    batch_tokens = batch_tokens or 4 * at_once(model)
    if not _reads_head(model):  # the plain path computes logits at all positions
        batch_tokens = min(batch_tokens, max(1, head.CHUNK // int(getattr(model.text_config, "vocab_size", None) or 1)))
    was_training = model.module.training
    model.module.eval()
    try:
        if kv_cache is not None and supports_tree_masks(model) and prefix.shares(model):
            batches = _batches_from_cache(model, rows, batch_tokens, kv_cache)
        else:
            batches = _batches(model, rows, batch_tokens)
        with progress.Counted("scoring", len(rows)) as bar:
            for group, batch, past in batches:
                batch = batch.to(model.device)
                states = label_states(model, batch, past)
                yield group, batch, of_states(model, states, batch.target, dict(fns or {"logp": token_functions.logp}))
                bar.advance(len(group))
    finally:
        model.module.train(was_training)


def _batches(model: Model, rows: Sequence[TokenizedExample], batch_tokens: int) -> Iterator[Batch]:
    """Yield rows in batches, each with the prefix it continues."""
    if model.kind == "seq2seq":
        for group in _by_prompt(rows, batch_tokens):
            yield group, collate([rows[i] for i in group], model.kind, model.pad, model.start), None
        return
    rule = packing_of(model)
    cached = prefix.shares(model) and (rule is not None or model.config.model_type not in TREE)
    for run in packing.plan(rows, rule) if cached else [packing.Branches((), packing.trees(rows, rule))]:
        past = None
        if run.prefix:
            positions = torch.arange(len(run.prefix), device=model.device)[None]
            past = prefix.Past(_SharedLayer.of(prefix.prefill(model, run.prefix)), positions)
        # Keys and values of the prefix are expanded to the rows, one layer at a time: a quarter of a token each.
        lengths = [max(t.width, (t.width + len(run.prefix)) // 4) for t in run.trees]
        for indices in by_length(lengths, batch_tokens):
            yield *_as_tensors(rows, [run.trees[i] for i in indices], model.pad), past


def _batches_from_cache(
    model: Model, rows: Sequence[TokenizedExample], batch_tokens: int, kv_cache: KVCache
) -> Iterator[Batch]:
    """Yield rows in batches of trees, each tree after its longest cached prefix; rows are cached when they are read."""
    trees = packing.trees(rows, packing_of(model))
    # As in `packing.plan`, tokens that predict a label are always run.
    free = [min(t.stem, *(len(rows[p.row].prompt) - 1 for p in t.paths), t.width) for t in trees]
    for indices in by_length([t.width for t in trees], batch_tokens):
        # A batch orders its trees by their first row.
        group = sorted(indices, key=lambda i: trees[i].paths[0].row)
        past = kv_cache.past([trees[i].ids.tolist() for i in group], [max(free[i], 0) for i in group])
        depths, width = past.depth.tolist(), past.position.shape[1]
        remaining = [trees[i].below(depth) for i, depth in zip(group, depths, strict=True)]
        yield *_as_tensors(rows, remaining, model.pad), past
        for index, (tree, depth) in enumerate(zip(remaining, depths, strict=True)):
            for path in tree.paths:
                columns = np.concatenate([np.arange(width - depth, width), path.spots + width])
                kv_cache.keep(packing.read(rows[path.row]), past.store, index, torch.from_numpy(columns))


def _as_tensors(rows: Sequence[TokenizedExample], trees: Sequence[Tree], pad: int) -> tuple[list[int], Tokens]:
    """Return the row indices of some trees, and their tensors."""
    group = sorted(p.row for t in trees for p in t.paths)
    number = {row: n for n, row in enumerate(group)}
    local = [t._replace(paths=tuple(p._replace(row=number[p.row]) for p in t.paths)) for t in trees]
    return group, of_trees([rows[i] for i in group], local, pad)


def _by_prompt(rows: Sequence[TokenizedExample], batch_tokens: int) -> list[list[int]]:
    """Group rows for an encoder-decoder, those of one prompt together."""
    members: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row.prompt, []).append(i)
    bundles: list[list[int]] = []
    for group in members.values():
        group.sort(key=lambda i: (-len(rows[i].completion), i))
        # The decoder's keys of the prompt are computed for each of its rows: a quarter of a token each.
        size = max(1, batch_tokens // (len(rows[group[0]].completion) + len(rows[group[0]].prompt) // 4 + 1))
        bundles += [group[i : i + size] for i in range(0, len(group), size)]
    lengths = [max(rows[i].size for i in b) for b in bundles]
    return [[i for b in g for i in bundles[b]] for g in by_length(lengths, batch_tokens, [len(b) for b in bundles])]


def row_logp(
    model: Model, rows: Sequence[TokenizedExample], batch_tokens: int | None = None, kv_cache: KVCache | None = None
) -> tuple[Tensor, Tensor]:
    """Return the log-prob of every completion, SUM over tokens, and its token count: `(rows,), (rows,)`, on the CPU."""
    total, count = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    for group, batch, values in score(model, rows, batch_tokens=batch_tokens, kv_cache=kv_cache):
        index = torch.tensor(group)
        total[index] = reduce.row_sum(values["logp"].double(), batch.row, len(group)).cpu()
        count[index] = reduce.row_count(batch.row, len(group)).double().cpu()
    return total, count


def cached_row_logp(model: Model, rows: Sequence[TokenizedExample]) -> Tensor:
    """Return `row_logp`'s sums, cached on disk by weights, configuration, rows, dtype and this source; print a hit."""
    if cache.folder() is None:
        return row_logp(model, rows)[0]
    dtype = str(next(model.module.parameters()).dtype)
    source = Path(__file__).read_bytes()
    setup = f"{model.config} {getattr(model.module, 'peft_config', None)}"  # rotary base, LoRA's scale: not in weights
    entry = cache.Entry("logp", model.fingerprint(), setup, repr(rows), dtype, source)
    cached = entry.read("logp")
    usable = cached is not None and cached["logp"].shape == (len(rows),)
    if spread.agreed(model.module, usable) and cached is not None:
        print(f"reference log-probs of {len(rows)} rows: from the cache {entry.path}", file=sys.stderr)
        return cached["logp"]
    total, _ = row_logp(model, rows)
    entry.write({"logp": total})
    return total


class _SharedLayer(prefix.Layer):
    """Keys and values of one prefix that every row of a batch continues; expanded to the rows, never appended to."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix's columns, then these."""
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([x.expand(len(new), -1, -1, -1), new], 2) for x, new in pairs if x is not None)
        return keys, values

    @staticmethod
    def of(store: prefix.Store) -> prefix.Store:
        """Wrap the store's single row for any number of rows."""
        layers: Any = store.layers
        return prefix.Store([_SharedLayer(layer.keys, layer.values, layer.length) for layer in layers])


def _decoded(model: Model, batch: Tokens) -> Tensor:
    """Return the head's input in an encoder-decoder, `(R, U, d)`, or its logits `(R, U, V)`."""
    ids, mask, source = batch.input_ids, batch.attention_mask, batch.source
    if not _reads_head(model):
        if source is not None:
            ids, mask = ids[source], mask[source]
        return model.module(
            input_ids=ids, attention_mask=mask, decoder_input_ids=batch.decoder_input_ids, use_cache=False
        ).logits
    inner = prefix.inner_of(model)
    encoded = inner.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    if source is not None:  # a prompt that rows share was encoded once
        encoded, mask = encoded[source], mask[source]
    states = inner.get_decoder()(
        input_ids=batch.decoder_input_ids, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    return states * inner.model_dim**-0.5 if inner.config.scale_decoder_outputs else states


def _at_labels(states: Tensor, batch: Tokens) -> Tensor:
    """Select states `(B, T, d)` at the label tokens, `(N, d)`."""
    return states.flatten(0, 1).index_select(0, batch.at)


def _combined(ensemble: EnsembleModel, states: Sequence[Tensor]) -> Tensor:
    """Return an ensemble's logits from the members' `label_states`, which may all have the dtype of the first."""

    def member_logits(member: Model, states: Tensor) -> Tensor:
        return logits_of(member, states.to(next(p.dtype for p in member.module.parameters() if p.is_floating_point())))

    first, *rest = map(member_logits, ensemble.members, states)
    return ensemble.module.combined(first, rest)


def _width(model: Model) -> int:
    """Width of the result of `label_states` for a model whose head is run separately."""
    if isinstance(model, EnsembleModel):
        return sum(map(_width, model.members))
    return int(prefix.inner_of(model).get_output_embeddings().in_features)


def _reads_head(model: Model) -> bool:
    """Whether the head can be run separately, on label tokens only."""
    if isinstance(model, EnsembleModel):
        return all(map(_reads_head, model.members))
    supported = {"causal": LINEAR_HEAD | CAPPED_HEAD, "seq2seq": APART}.get(model.kind, set())
    # Modules inserted into a decoder leave its head unchanged, and record its type.
    model_type = getattr(model.config, "head_type", None) or getattr(model.config, "model_type", None)
    return model_type in supported and not prefix.learned_prompt(model)


def _needs_gradient(model: Model, columns: Mapping[str, Tensor]) -> bool:
    """Whether the head, or a column that token functions take beside logits, needs a gradient."""
    if isinstance(model, EnsembleModel):
        return any(_needs_gradient(member, columns) for member in model.members)
    layer = prefix.inner_of(model).get_output_embeddings()
    return torch.is_grad_enabled() and any(x.requires_grad for x in (*layer.parameters(), *columns.values()))


def _score_dtype(model: Model) -> torch.dtype:
    """The dtype of the attention scores, which an additive mask must have."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.module.dtype  # type: ignore  # a transformers module has one
