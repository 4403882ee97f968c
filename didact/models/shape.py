"""A transformers model as the planner's numbers: built without memory, so that its weights are counted exactly."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from didact.models import insert, opening
from didact.models.model import text_part
from didact.parallel import memory
from didact.parallel.spec import Block, ModelSpec
from didact.types import UserError

ROW = ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "w2", "wo")  # split by inputs
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
INNER = ("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
EMBEDDING = ("emb", "wpe", "wte")
FUSED = "didact-fused"
PROBES = (32, 64)  # tokens of the passes that are looked at
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def read(path: str | Path) -> ModelSpec:
    """The shape of a causal model: a folder with its config.json, that file, or a hub id. No weights are read.

    Raises:
        UserError: it is none, or no causal model of transformers.
    """
    where = Path(path).parent if Path(path).name == "config.json" else Path(path)
    if where.exists() and not (where / "config.json").is_file():
        raise UserError(f"{path}: no config.json in it: not a model folder")
    if not where.exists() and (Path(path).name == "config.json" or str(path).startswith((".", "/", "~"))):
        raise UserError(f"{path}: no such folder or file")
    try:
        return of(opening.opened("AutoConfig", where if where.exists() else path), str(path))
    except UserError:
        raise
    except Exception as error:  # a stranger's configuration, over which transformers trips anywhere
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{path}: no causal model that transformers can build: {first}") from None


def of(config: Any, name: str = "") -> ModelSpec:
    """The shape of a configuration: every weight counted in the model that transformers builds of it."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name}: an encoder-decoder: only causal models are planned")
    config = copy.deepcopy(text_part(config))  # which the model built of it changes
    with torch.device("meta"):
        module = opening.built("AutoModelForCausalLM", config).to(torch.bfloat16).eval()
    found = insert.blocks(module)
    inside = {id(p) for block in found for p in block.parameters()}
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    tied = head is None or head.weight is table.weight
    inside |= set() if tied else {id(head.weight)}
    outside = [(n, p.numel()) for n, p in module.named_parameters() if id(p) not in inside]
    heads = _first(config, ("num_attention_heads", "num_heads")) or 1
    experts = _first(config, EXPERTS) or 0
    active = _first(config, ("num_experts_per_tok", "moe_top_k")) or 1
    last = sum(n for name, n in outside if not any(word in name for word in EMBEDDING))
    own = {
        n.split(".")[-2] if n.endswith((".weight", ".bias")) else n.split(".")[-1]
        for n, _ in found[-1].named_parameters()
    }
    drops = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
    spec = ModelSpec(
        layers=len(found), hidden=int(config.hidden_size), heads=heads, vocab=int(config.vocab_size),
        context=_first(config, LONGEST) or 2048, kv_heads=_first(config, ("num_key_value_heads",)) or 0,
        head_dim=_first(config, ("head_dim",)) or 0, ffn=_first(config, INNER) or 0,
        gated=bool(own & {"gate_proj", "gate_up_proj", "w3"}),
        rms=any("RMSNorm" in type(part).__name__ for part in module.modules()), tied=tied,
        dropout=any(p > 0 for p in drops),
        experts=experts, active=active if experts else 0, embedding=sum(n for _, n in outside) - last,
        last=last, head=_products(module) - sum(map(_products, found)), name=name,
    )  # fmt: skip
    share, kept = active / experts if experts else 1.0, _kept(module, found)
    blocks = (
        _block(block, share, window, count - memory.linear(spec) if count else 0)
        for block, window, count in zip(found, _windows(config, found), kept, strict=True)
    )
    return dataclasses.replace(spec, blocks=tuple(blocks))


def _products(module: nn.Module) -> int:
    """Weights of linear layers, one that several share for each of them."""
    matrices: Any = (part.weight for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
    return sum(weight.numel() for weight in matrices)


def _block(block: nn.Module, share: float, window: int | None, more: int) -> Block:
    """Weights of a layer by how tensor parallelism lays them; a mixture's experts are in one matrix of three axes."""
    sharded = replicated = matmul = 0
    for name, part in block.named_modules():
        dense = isinstance(part, nn.Linear | Conv1D)
        for which, p in part.named_parameters(recurse=False):
            split = p.dim() > 2 or (dense and (which == "weight" or name.rpartition(".")[2] not in ROW))
            sharded, replicated = sharded + split * p.numel(), replicated + (not split) * p.numel()
            if p.dim() == 3 or (dense and which == "weight"):
                matmul += round(p.numel() * (share if p.dim() == 3 else 1))
    return Block(sharded=sharded, replicated=replicated, matmul=matmul, window=window, more=more)


def _kept(module: Any, blocks: Sequence[nn.Module]) -> list[int]:
    """Half-precision numbers a token that every layer's code keeps for its backward pass; zeros where it cannot be run
    without data. What grows with the square of the length is left out, by two lengths.
    """
    fused: Any = _Fused.apply
    AttentionInterface.register(FUSED, lambda _, q, k, v, *__, **___: (fused(q, k, v).transpose(1, 2), None))
    with contextlib.suppress(ValueError):  # some have attention of their own
        module.set_attn_implementation(FUSED)
    try:
        short, long = (_saved(module, blocks, length) for length in PROBES)
    except Exception:  # whatever a model's code says to tensors without data
        return [0] * len(blocks)
    a, b = PROBES
    return [round((s * b / a - t * a / b) / (2 * (b - a))) for s, t in zip(short, long, strict=True)]


class _Fused(torch.autograd.Function):
    """What a fused kernel of attention keeps: queries, keys, values and what it gives."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def _saved(module: nn.Module, blocks: Sequence[nn.Module], length: int) -> list[int]:
    """Bytes that a forward pass over so many tokens leaves to the backward pass, by layer."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    seen: dict[int, Tensor] = {}
    sizes, at = [0] * len(blocks), [-1]

    def pack(x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if at[0] >= 0 and key not in own and key not in seen:
            seen[key] = x
            sizes[at[0]] += x.untyped_storage().nbytes()
        return x

    def entered(number: int) -> Callable[..., None]:
        return lambda *_: at.__setitem__(0, number)

    handles = [block.register_forward_pre_hook(entered(i)) for i, block in enumerate(blocks)]
    handles += [block.register_forward_hook(entered(-1)) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(input_ids=torch.zeros((1, length), dtype=torch.long, device="meta"), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _windows(config: Any, blocks: list[nn.Module]) -> Iterator[int | None]:
    """How far each layer sees: None without limit, 0 without attention."""
    kinds = getattr(config, "layer_types", None) or [None] * len(blocks)
    width = getattr(config, "sliding_window", None)
    for kind, block in zip(kinds, blocks, strict=True):
        if not any("Attention" in type(part).__name__ for part in block.modules()):
            yield 0
        else:
            yield width if kind in (None, "sliding_attention") and isinstance(width, int) else None


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(n) for n in found if isinstance(n, int | float) and math.isfinite(n) and n > 0), None)
