"""Small models from scratch, with any architecture in `Arch` and a byte-level BPE trained on given text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from didact.models.model import Kind, Model

Arch = Literal[
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "bloom", "mamba", "t5", "bert"
]
BOS, EOS, PAD, UNKNOWN, MASK = "<s>", "</s>", "<pad>", "<unk>", "<mask>"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with `<s>`, `</s>` and `<pad>`: it encodes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_pieces(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per white-space separated word of the texts, for artificial languages."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(word for text in texts for word in text.split())
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((PAD, BOS, EOS, UNKNOWN, MASK, *words))}, UNKNOWN)
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN,
        mask_token=MASK, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build(
    arch: Arch,
    tokenizer: PreTrainedTokenizerFast,
    d: int = 128,
    layers: int = 3,
    heads: int = 4,
    ffn: int | None = None,
    context: int = 512,
    tied: bool = True,
    seed: int = 0,
    dropout: float = 0.0,
    **extra: Any,
) -> Model:
    """Build a model with random weights: `d` wide, `layers` deep, feed-forward `ffn` (4 d; 8/3 d if it is gated).

    `extra` goes to the transformers configuration. Mamba has neither heads nor a feed-forward layer.
    """
    import transformers as hf

    name, shape = _shape(arch, d, layers, heads, ffn, context, dropout)
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": tied,
    }
    if arch == "t5":
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    heads_of = {"t5": "ForConditionalGeneration", "gpt2": "LMHeadModel", "bert": "ForMaskedLM"}
    head = heads_of.get(arch, "ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(hf, f"{name}{'TextConfig' if arch == 'gemma3' else 'Config'}")(
            vocab_size=len(tokenizer), **(shape | ids | extra)
        )
        if arch in ("t5", "bloom", "mamba"):  # they have no limit of positions: only `Model.context` reads it
            config.n_positions = context
        module = getattr(hf, f"{name}{head}")(config)
    kind: Kind = "seq2seq" if arch == "t5" else "masked" if arch == "bert" else "causal"
    return Model(module.eval(), tokenizer, kind)


def _shape(
    arch: str, d: int, layers: int, heads: int, ffn: int | None, context: int, dropout: float
) -> tuple[str, dict[str, Any]]:
    """The name of a transformers configuration and its fields."""
    if arch == "t5":
        shape: dict[str, Any] = {
            "d_model": d,
            "d_kv": d // heads,
            "d_ff": ffn or 4 * d,
            "num_layers": layers,
            "num_heads": heads,
        }
        return "T5", shape | {"dropout_rate": dropout}
    if arch == "gpt2":
        drops: dict[str, Any] = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        shape = {"n_positions": context, "n_embd": d, "n_layer": layers, "n_head": heads, "n_inner": ffn}
        return "GPT2", shape | drops
    if arch == "bloom":
        drops = {"hidden_dropout": dropout, "attention_dropout": dropout}
        return "Bloom", {"hidden_size": d, "n_layer": layers, "n_head": heads} | drops
    if arch == "mamba":
        return "Mamba", {"hidden_size": d, "num_hidden_layers": layers}
    shape = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape |= {"max_position_embeddings": context, "attention_dropout": dropout}
    if arch == "bert":
        drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        del shape["attention_dropout"]
        return "Bert", shape | drops | {"intermediate_size": ffn or 4 * d, "type_vocab_size": 1}
    if arch == "gpt_neox":
        return "GPTNeoX", shape | {"intermediate_size": ffn or 4 * d, "hidden_dropout": dropout}
    if arch == "opt":
        return "OPT", shape | {"ffn_dim": ffn or 4 * d, "word_embed_proj_dim": d, "dropout": dropout}
    shape |= {"intermediate_size": ffn or 8 * d // 3, "num_key_value_heads": heads}
    if arch in ("qwen3", "gemma2", "gemma3"):
        shape["head_dim"] = d // heads
    if arch.startswith("gemma"):
        shape["query_pre_attn_scalar"] = d // heads
    return {"llama": "Llama", "mistral": "Mistral"}.get(arch, arch.capitalize()), shape


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Split long texts into lines: the trainer is faster on many short strings."""
    for text in texts:
        yield from text.splitlines(keepends=True) if len(text) > 10_000 else [text]
