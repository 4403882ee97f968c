"""The shape of a transformers model for the planner: built on the meta device, so that its weights are exact counts."""

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
PROBES = (32, 64)  # tokens of the forward passes that activations are measured in
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def read(path: str | Path) -> ModelSpec:
    """Return the shape of a causal model: a folder with its config.json, that file, or a hub id. No weights are read.

    Raises:
        UserError: the path is none of these, or no causal model of transformers.
    """
    folder = Path(path).parent if Path(path).name == "config.json" else Path(path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{path}: no config.json: not a model folder")
    if not folder.exists() and (Path(path).name == "config.json" or str(path).startswith((".", "/", "~"))):
        raise UserError(f"{path}: no such folder or file")
    try:
        return of(opening.open_pretrained("AutoConfig", folder if folder.exists() else path), str(path))
    except UserError:
        raise
    except Exception as error:  # an invalid configuration can fail anywhere in transformers
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{path}: no causal model that transformers can build: {first}") from None


def of(config: Any, name: str = "") -> ModelSpec:
    """Return the shape of a configuration, every weight counted in the model that transformers builds from it."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name}: an encoder-decoder model: the planner takes causal models only")
    config = copy.deepcopy(text_part(config))  # building a model changes it
    with torch.device("meta"):
        module = opening.build_from_config("AutoModelForCausalLM", config).to(torch.bfloat16).eval()
    layers = insert.blocks(module)
    inside = {id(p) for block in layers for p in block.parameters()}
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    tied = head is None or head.weight is table.weight
    inside |= set() if tied else {id(head.weight)}
    outside = [(n, p.numel()) for n, p in module.named_parameters() if id(p) not in inside]
    heads = _first(config, ("num_attention_heads", "num_heads")) or 1
    experts = _first(config, EXPERTS) or 0
    active = _first(config, ("num_experts_per_tok", "moe_top_k")) or 1
    after = sum(n for name, n in outside if not any(word in name for word in EMBEDDING))
    matrices = {
        n.split(".")[-2] if n.endswith((".weight", ".bias")) else n.split(".")[-1]
        for n, _ in layers[-1].named_parameters()
    }
    dropouts = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
    spec = ModelSpec(
        layers=len(layers), hidden=int(config.hidden_size), heads=heads, vocab=int(config.vocab_size),
        context=_first(config, LONGEST) or 2048, kv_heads=_first(config, ("num_key_value_heads",)) or 0,
        head_dim=_first(config, ("head_dim",)) or 0, ffn=_first(config, INNER) or 0,
        gated=bool(matrices & {"gate_proj", "gate_up_proj", "w3"}),
        rms=any("RMSNorm" in type(part).__name__ for part in module.modules()), tied=tied,
        dropout=any(p > 0 for p in dropouts),
        experts=experts, active=active if experts else 0, embedding=sum(n for _, n in outside) - after,
        last=after, head=_products(module) - sum(map(_products, layers)), name=name,
    )  # fmt: skip
    share, saved = active / experts if experts else 1.0, _saved_per_token(module, layers)
    blocks = (
        _block(block, share, window, count - memory.linear(spec) if count else 0)
        for block, window, count in zip(layers, _windows(config, layers), saved, strict=True)
    )
    return dataclasses.replace(spec, blocks=tuple(blocks))


def _products(module: nn.Module) -> int:
    """Weights of linear layers; a shared one counts for each layer."""
    matrices: Any = (part.weight for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
    return sum(weight.numel() for weight in matrices)


def _block(block: nn.Module, share: float, window: int | None, extra: int) -> Block:
    """Weights of a layer by how tensor parallelism splits them; a mixture's experts are one tensor of three axes."""
    sharded = replicated = matmul = 0
    for name, part in block.named_modules():
        dense = isinstance(part, nn.Linear | Conv1D)
        for field, p in part.named_parameters(recurse=False):
            split = p.dim() > 2 or (dense and (field == "weight" or name.rpartition(".")[2] not in ROW))
            sharded, replicated = sharded + split * p.numel(), replicated + (not split) * p.numel()
            if p.dim() == 3 or (dense and field == "weight"):
                matmul += round(p.numel() * (share if p.dim() == 3 else 1))
    return Block(sharded=sharded, replicated=replicated, matmul=matmul, window=window, more=extra)


def _saved_per_token(module: Any, blocks: Sequence[nn.Module]) -> list[int]:
    """Half-precision numbers per token that each layer saves for its backward pass; zeros if it cannot run on the meta
    device. Two lengths are measured, to leave out what grows with the square of the length.
    """
    fused: Any = _FusedAttention.apply
    AttentionInterface.register(FUSED, lambda _, q, k, v, *__, **___: (fused(q, k, v).transpose(1, 2), None))
    with contextlib.suppress(ValueError):  # some implement attention themselves
        module.set_attn_implementation(FUSED)
    try:
        short, long = (_saved_bytes(module, blocks, length) for length in PROBES)
    except Exception:  # a model's code may fail in any way on meta tensors
        return [0] * len(blocks)
    a, b = PROBES
    return [round((s * b / a - t * a / b) / (2 * (b - a))) for s, t in zip(short, long, strict=True)]


class _FusedAttention(torch.autograd.Function):
    """Saves what a fused attention kernel saves: queries, keys, values and output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def _saved_bytes(module: nn.Module, blocks: Sequence[nn.Module], length: int) -> list[int]:
    """Bytes that a forward pass over `length` tokens saves for the backward pass, per layer."""
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    counted: dict[int, Tensor] = {}
    sizes, current = [0] * len(blocks), [-1]

    def pack(x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if current[0] >= 0 and key not in parameters and key not in counted:
            counted[key] = x
            sizes[current[0]] += x.untyped_storage().nbytes()
        return x

    def set_current(number: int) -> Callable[..., None]:
        return lambda *_: current.__setitem__(0, number)

    handles = [block.register_forward_pre_hook(set_current(i)) for i, block in enumerate(blocks)]
    handles += [block.register_forward_hook(set_current(-1)) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(input_ids=torch.zeros((1, length), dtype=torch.long, device="meta"), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _windows(config: Any, blocks: list[nn.Module]) -> Iterator[int | None]:
    """Attention window of each layer: None if unlimited, 0 if it has no attention."""
    kinds = getattr(config, "layer_types", None) or [None] * len(blocks)
    width = getattr(config, "sliding_window", None)
    for kind, block in zip(kinds, blocks, strict=True):
        if not any("Attention" in type(part).__name__ for part in block.modules()):
            yield 0
        else:
            yield width if kind in (None, "sliding_attention") and isinstance(width, int) else None


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((int(n) for n in values if isinstance(n, int | float) and math.isfinite(n) and n > 0), None)
