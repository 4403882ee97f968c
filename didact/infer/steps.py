"""Split a text's token ids into steps, and compute each step's prior under the policy.

A step is never decoded and encoded again, so that training sees exactly the tokens that the policy sampled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from didact.data.encode import TokenizedExample
from didact.infer.tree import Node, Step
from didact.models import forward
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.types import UserError


def closers(tokenizer: PreTrainedTokenizerBase, delimiters: Sequence[str]) -> frozenset[int]:
    """The tokens whose text contains a delimiter, so that a step's end is known as soon as the token is sampled.

    Raises:
        UserError: no token contains one of them.
    """
    ids = range(len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True)
    by_delimiter = {d: {i for i, text in zip(ids, texts, strict=True) if d in text} for d in delimiters}
    for delimiter, tokens in by_delimiter.items():
        if not delimiter or not tokens:
            raise UserError(f"step {delimiter!r}: no token of the model's tokenizer contains it")
    return frozenset().union(*by_delimiter.values())


def split(tokens: Sequence[int], closing: Collection[int]) -> list[tuple[int, ...]]:
    """Split tokens into steps, each with its closing token; the last may have none. Concatenated they are `tokens`."""
    out: list[tuple[int, ...]] = []
    start = 0
    for i, token in enumerate(tokens):
        if token in closing:
            out.append(tuple(tokens[start : i + 1]))
            start = i + 1
    return [*out, tuple(tokens[start:])] if start < len(tokens) else out


def pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], delimiters: Sequence[str]
) -> list[tuple[int, ...]]:
    """Split tokens at delimiters that may span tokens: a piece ends with the token that completes a delimiter.

    White space at a delimiter's end may belong to the token after it (`,` before ` b` matches `", "`).
    """
    texts = _prefixes(tokenizer, tuple(tokens))
    whole = texts[-1] if texts else ""
    ends = set()
    for delimiter in delimiters:
        core = delimiter.rstrip() or delimiter
        at = whole.find(delimiter)
        while at >= 0:
            ends.add(at + len(core))
            at = whole.find(delimiter, at + 1)
    out: list[tuple[int, ...]] = []
    start, before = 0, 0
    for i, text in enumerate(texts):
        if any(before < end <= len(text) for end in ends):
            out.append(tuple(tokens[start : i + 1]))
            start = i + 1
        before = len(text)
    return [*out, tuple(tokens[start:])] if start < len(tokens) else out


def prior(logp: float, length: int, power: float = 1.0) -> float:
    """`exp(logp / length^power)` of a step: power 0 its probability, 1 the geometric mean, more favours long steps."""
    return math.exp(logp / max(1, length) ** power)


def with_priors(
    model: Model,
    prompts: Sequence[Sequence[int]],
    chains: Sequence[Sequence[Step]],
    power: float = 1.0,
    kv_cache: KVCache | None = None,
) -> list[list[Step]]:
    """Set the prior of each step of chains that follow prompts (token ids), in one batched pass."""
    rows = []
    for prompt, chain in zip(prompts, chains, strict=True):
        prefix = tuple(prompt)
        for step in chain:
            rows.append(TokenizedExample(prefix, step.tokens))
            prefix += step.tokens
    total = iter(forward.row_logp(model, rows, kv_cache=kv_cache)[0].tolist() if rows else [])
    return [[s._replace(prior=prior(next(total), len(s.tokens), power)) for s in chain] for chain in chains]


def text(tokenizer: PreTrainedTokenizerBase, node: Node) -> str:
    """A node's text from the root on, without special tokens."""
    return str(tokenizer.decode(list(node.tokens), skip_special_tokens=True))


@functools.lru_cache(maxsize=4096)
def _prefixes(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> list[str]:
    """The text of every prefix of the tokens; bytes of an incomplete character are left out."""
    return [
        str(tokenizer.decode(list(tokens[: i + 1]), skip_special_tokens=True)).rstrip("�") for i in range(len(tokens))
    ]
