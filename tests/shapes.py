"""Tiny models of every architecture, for any test: `from shapes import tiny`; exact numbers; what a model knows.

One token a byte, ids from `FIRST` to `VOCABULARY`; two layers, 32 wide; weights strong enough that a wrong
mask, position or head shows far above rounding. A mistral, a gemma2 and a gemma3 see 4 tokens back, less than
most rows are long; a gemma2 caps its logits; llama, qwen2, qwen3 and mistral share keys between heads.
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
EFFECTS = ["llama", pytest.param("gpt2", marks=pytest.mark.soak)]  # where what a method teaches is shown


@cache
def byte_tokenizer():
    """256 bytes and three special tokens, no merges."""
    return build.train_tokenizer([], VOCABULARY)


def tiny(kind: str, seed: int = 0, context: int = CONTEXT, **more) -> Model:
    """A new model of this type, in eval mode, float32. All share one tokenizer: who adds to it copies it first."""
    assert len(byte_tokenizer()) == VOCABULARY, "a test before this one added to the tokenizer that all share"
    made = build.build(
        kind, byte_tokenizer(), d=32, layers=2, heads=4, ffn=48, context=context, seed=seed, **(MORE[kind] | more)
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for p in made.module.parameters():  # initial weights are so small that every path would give the same
            p.add_(0.1 * torch.randn_like(p))
    return made


def brief(model: Model) -> Model:
    """Untrained and soon at the end of its answers: random weights would hardly ever choose the one end token."""
    model.module.generation_config.eos_token_id = [2, *range(FIRST, VOCABULARY, 16)]
    return model


def f64(*values) -> torch.Tensor:
    """These numbers in double precision, for exact answers."""
    return torch.tensor(values, dtype=torch.float64)


def accuracy(model: Model, records) -> float:
    """Mean over records of the share of their tokens that are the model's first choice."""
    return forgetting.answers(model, records)["accuracy"].mean()


def probability(model: Model, records) -> float:
    """Mean over records of the probability of a token of their completions."""
    return forgetting.answers(model, records)["probability"].mean()


def plain_logits(model: Model, rows: Iterable[TokenizedExample]) -> torch.Tensor:
    """Logits at the labels, one record at a time without padding, through the model's own forward."""
    out = []
    for prompt, completion in rows:
        if model.kind == "seq2seq":
            whole = model.module(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([(model.start, *completion[:-1])]),
            ).logits[0]
            out.append(whole)
        else:
            whole = model.module(input_ids=torch.tensor([prompt + completion])).logits[0]
            out.append(whole[len(prompt) - 1 : -1])
    return torch.cat(out)


SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENIZERS = ("bytes", "always", "first", "never", "prepend", "unigram", "wordpiece")
SPOKEN = ("Where was Mira born? In Tarn.", "Question: what is 2 + 3?\nAnswer: 5\n\n", "the songs of Velm, 12 maps  two")


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of each kind: byte-level; Metaspace (Phi-3, Gemma) with its three schemes; the `Prepend`
    normalizer (Mistral, Llama 2); Unigram (T5); WordPiece (BERT), which puts tokens before and behind a text."""
    letters = sorted(set("".join(SPOKEN)) - {" "} | {"▁"})
    pieces = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind if kind in TOKENIZERS[1:4] else "always")
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
        pieces.vocab_size = 330
    elif kind == "unigram":
        core = Tokenizer(models.Unigram())
        core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        pieces = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    elif kind == "wordpiece":
        core = Tokenizer(models.WordPiece(unk_token="<unk>"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        pieces = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(SPOKEN * 5, pieces)
    if kind == "prepend":
        core.pre_tokenizer = None
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [(name, core.token_to_id(name)) for name in SPECIAL[1:]]
    single = "<s> $A </s>" if kind == "wordpiece" else "<s> $A"
    core.post_processor = TemplateProcessing(single=single, special_tokens=ends)
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind == "wordpiece":
        named = {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **named)
