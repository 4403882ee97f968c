"""Rank candidate completions by log-probability with GPT-3's scoring rules (Brown et al., 2020, section 2.4).

The rules are pure functions of summed log-probs, from whatever source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from didact.data import encode
from didact.models import forward
from didact.models.kv_cache import KVCache
from didact.models.model import Model
from didact.types import UserError

Rule = Literal["sum", "token", "character", "unconditional"]
ANSWER = "Answer:"  # the context of the unconditional log-prob


def by_rule(rule: Rule, total: float, tokens: float = 1, characters: float = 1, unconditional: float = 0.0) -> float:
    """A candidate's score from its log-prob `total`, SUM over its tokens in nats.

    `sum` total; `token` total / tokens (GPT-3's default); `character` total / characters (lm-eval's
    `acc_norm`); `unconditional` total - log p(candidate | answer context), sums both (ARC, OpenBookQA, RACE).

    Raises:
        ValueError: an unknown rule, or nothing to divide by.
    """
    if rule == "sum":
        return total
    if rule == "unconditional":
        return total - unconditional
    if rule not in ("token", "character"):
        raise ValueError(f"unknown rule '{rule}': use sum, token, character or unconditional")
    size = tokens if rule == "token" else characters
    if size <= 0:
        raise ValueError("an empty candidate has no mean log-prob")
    return total / size


def rank(
    model: Model,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    rule: Rule = "token",
    answer_context: str = ANSWER,
    end: bool = False,
    kv_cache: KVCache | None = None,
) -> list[list[float]]:
    """Score every prompt's candidates, higher is likelier, in their order.

    Args:
        model: any causal or seq2seq model.
        prompts: what precedes the candidates.
        candidates: one list of texts for each prompt, joined to it with a space where neither has one.
        rule: see `by_rule`.
        answer_context: `unconditional` compares with the candidate after this text.
        end: whether the end token after a candidate is scored too; GPT-3 does not.
        kv_cache: prefixes that this model has already read.

    Raises:
        UserError: a candidate is empty or does not fit the context; not one list for each prompt.
    """
    if len(prompts) != len(candidates):
        raise UserError(f"{len(candidates)} lists of candidates for {len(prompts)} prompts")
    pairs = [(p, c) for p, texts in zip(prompts, candidates, strict=True) for c in texts]
    rows = [_row(model, p, c, end) for p, c in pairs]
    unconditional: dict[str, float] = {}
    if rule == "unconditional":
        texts = list(dict.fromkeys(c for _, c in pairs))
        sums, _ = forward.row_logp(model, [_row(model, answer_context, c, end) for c in texts])
        unconditional = dict(zip(texts, sums.tolist(), strict=True))
    totals, counts = forward.row_logp(model, rows, kv_cache=kv_cache)
    scores = iter(
        by_rule(rule, total, count, len(text), unconditional.get(text, 0.0))
        for (_, text), total, count in zip(pairs, totals.tolist(), counts.tolist(), strict=True)
    )
    return [[next(scores) for _ in texts] for texts in candidates]


def probabilities(
    model: Model, prompts: Sequence[str], labels: Sequence[str], kv_cache: KVCache | None = None
) -> list[list[float]]:
    """The probability of each label, over all its tokens, right after each prompt.

    They sum to less than 1: the rest of the mass is on other texts.
    """
    scores = rank(model, prompts, [labels] * len(prompts), "sum", kv_cache=kv_cache)
    return [[math.exp(s) for s in row] for row in scores]


def expected(
    model: Model, prompts: Sequence[str], worth: Mapping[str, float], kv_cache: KVCache | None = None
) -> list[float]:
    """The expected worth of a model's verdict for every prompt: sum over labels of worth times probability."""
    return [
        sum(w * p for w, p in zip(worth.values(), row, strict=True))
        for row in probabilities(model, prompts, list(worth), kv_cache)
    ]


def _row(model: Model, prompt: str, candidate: str, end: bool) -> encode.TokenizedExample:
    try:
        return encode.row(model.tokenizer, prompt, candidate, model.kind, model.context, end)
    except UserError as error:
        raise UserError(f"candidate {candidate!r}: {error}") from None
