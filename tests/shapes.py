"""Tiny models of every architecture, for any test: `from shapes import tiny`; exact numbers; what a model knows.

One token a byte, ids from `FIRST` to `VOCABULARY`; two layers, 32 wide; weights strong enough that a wrong
mask, position or head shows far above rounding. A mistral, a gemma2 and a gemma3 see 4 tokens back, less than
most rows are long; a gemma2 caps its logits; llama, qwen2, qwen3 and mistral share keys between heads.
"""

from collections.abc import Iterable
from functools import cache

import torch

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


@cache
def byte_tokenizer():
    """256 bytes and three special tokens, no merges."""
    return build.train_tokenizer([], VOCABULARY)


def tiny(kind: str, seed: int = 0, context: int = CONTEXT, **more) -> Model:
    """A new model of this type, in eval mode, float32."""
    made = build.build(
        kind, byte_tokenizer(), d=32, layers=2, heads=4, ffn=48, context=context, seed=seed, **(MORE[kind] | more)
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for p in made.module.parameters():  # initial weights are so small that every path would give the same
            p.add_(0.1 * torch.randn_like(p))
    return made


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
