"""Small models from scratch: Llama, GPT-2 and T5 shapes with a byte-level BPE trained on given text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from didact.models.model import Model

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `<s>`, `</s>` and `<pad>`: no text is outside its vocabulary."""
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


def build(
    arch: Literal["llama", "gpt2", "t5"],
    tokenizer: PreTrainedTokenizerFast,
    d: int = 128,
    layers: int = 3,
    heads: int = 4,
    ffn: int | None = None,
    context: int = 512,
    tied: bool = True,
    seed: int = 0,
    dropout: float = 0.0,
    **more: Any,
) -> Model:
    """A model with random weights: `d` wide, `layers` deep, feed-forward `ffn` (4 d, for Llama 8/3 d).

    `more` goes to the transformers configuration as it is.
    """
    import transformers as hf

    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": tied,
    }
    width = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arch == "llama":
            shape: dict[str, Any] = {
                "hidden_size": d,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": ffn or 8 * d // 3,
            }
            config: Any = hf.LlamaConfig(
                vocab_size=width, max_position_embeddings=context, attention_dropout=dropout, **shape, **ids, **more
            )
            return Model(hf.LlamaForCausalLM(config).eval(), tokenizer, "causal")
        if arch == "gpt2":
            drops: dict[str, Any] = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
            config = hf.GPT2Config(
                vocab_size=width,
                n_positions=context,
                n_embd=d,
                n_layer=layers,
                n_head=heads,
                n_inner=ffn,
                **drops,
                **ids,
                **more,
            )
            return Model(hf.GPT2LMHeadModel(config).eval(), tokenizer, "causal")
        shape = {"d_model": d, "d_kv": d // heads, "d_ff": ffn or 4 * d, "num_layers": layers, "num_heads": heads}
        more["decoder_start_token_id"] = tokenizer.pad_token_id
        config = hf.T5Config(
            vocab_size=width,
            dropout_rate=dropout,
            **shape,
            **ids,
            **more,
        )
        config.n_positions = context
        return Model(hf.T5ForConditionalGeneration(config).eval(), tokenizer, "seq2seq")


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Long texts line by line: the trainer is quicker on many short strings."""
    for text in texts:
        yield from text.splitlines(keepends=True) if len(text) > 10_000 else [text]
