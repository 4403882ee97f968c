"""Tiny models of every architecture, for any test: `from shapes import tiny`; exact tensors; accuracy of a model.

One token per byte, ids from `FIRST` to `VOCABULARY`; two layers, 32 wide; weights large enough that a wrong mask,
position or head shows far above rounding. mistral, gemma2 and gemma3 attend to a window of 4 tokens, shorter than
most rows; gemma2 caps its logits; llama, qwen2, qwen3 and mistral share keys between heads.
"""

from collections.abc import Iterable
from functools import cache

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from didact.data.encode import TokenizedExample
from didact.evaluate import forgetting
from didact.models import build
from didact.models.model import Model

FIRST = 3  # the ids below are <pad>, <s> and </s>
VOCABULARY = 256 + FIRST
CONTEXT = 256
WINDOW = 4
GROUPED = {"num_key_value_heads": 2}
MORE = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 16},
    "mistral": GROUPED | {"sliding_window": WINDOW},
    # One layer with the window and one without; layer types are otherwise periods of 2 and 6.
    "gemma2": {"sliding_window": WINDOW, "final_logit_softcapping": 0.5},
    "gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "bloom": {},
    "mamba": {},
    "t5": {},
}
KINDS = tuple(MORE)
EFFECTS = ["llama", pytest.param("gpt2", marks=pytest.mark.soak)]  # for tests of what a method teaches


@cache
def byte_tokenizer():
    """256 bytes and three special tokens, no merges."""
    return build.train_tokenizer([], VOCABULARY)


def tiny(kind: str, seed: int = 0, context: int = CONTEXT, **more) -> Model:
    """Return a new model of this type, in eval mode, float32. All share one tokenizer: copy it before adding to it."""
    assert len(byte_tokenizer()) == VOCABULARY, "a test before this one added to the tokenizer that all share"
    model = build.build(
        kind, byte_tokenizer(), d=32, layers=2, heads=4, ffn=48, context=context, seed=seed, **(MORE[kind] | more)
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for p in model.module.parameters():  # initial weights are so small that every path would give the same
            p.add_(0.1 * torch.randn_like(p))
    return model


def brief(model: Model) -> Model:
    """Let an untrained model's answers end soon: random weights would hardly ever choose the one end token."""
    model.module.generation_config.eos_token_id = [2, *range(FIRST, VOCABULARY, 16)]
    return model


def f64(*values) -> torch.Tensor:
    """Return a double-precision tensor of these numbers, for exact comparisons."""
    return torch.tensor(values, dtype=torch.float64)


def accuracy(model: Model, records) -> float:
    """Return the mean over records of the share of their tokens that are the model's first choice."""
    return forgetting.answers(model, records)["accuracy"].mean()


def probability(model: Model, records) -> float:
    """Return the mean over records of the probability of a token of their completions."""
    return forgetting.answers(model, records)["probability"].mean()


def plain_logits(model: Model, rows: Iterable[TokenizedExample]) -> torch.Tensor:
    """Return the logits at the labels, one record at a time without padding, by the model's own forward."""
    out = []
    for prompt, completion in rows:
        if model.kind == "seq2seq":
            logits = model.module(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([(model.start, *completion[:-1])]),
            ).logits[0]
            out.append(logits)
        else:
            logits = model.module(input_ids=torch.tensor([prompt + completion])).logits[0]
            out.append(logits[len(prompt) - 1 : -1])
    return torch.cat(out)


SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENIZERS = ("bytes", "always", "first", "never", "prepend", "unigram", "wordpiece")
SPOKEN = ("Where was Mira born? In Tarn.", "Question: what is 2 + 3?\nAnswer: 5\n\n", "the songs of Velm, 12 maps  two")


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of each kind: byte-level; Metaspace (Phi-3, Gemma) with its three schemes; the `Prepend`
    normalizer (Mistral, Llama 2); Unigram (T5); WordPiece (BERT), which puts tokens before and after a text."""
    letters = sorted(set("".join(SPOKEN)) - {" "} | {"▁"})
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind if kind in TOKENIZERS[1:4] else "always")
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer.vocab_size = 330
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SPOKEN * 5, trainer)
    if kind == "prepend":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special_ids = [(name, tokenizer.token_to_id(name)) for name in SPECIAL[1:]]
    single = "<s> $A </s>" if kind == "wordpiece" else "<s> $A"
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special_ids)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind == "wordpiece":
        special = {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
