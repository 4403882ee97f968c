"""Verbatim memorisation of a text: extraction likelihood and memorisation accuracy.

Source: Jang et al. 2023, Knowledge Unlearning for Mitigating Privacy Risks in Language Models, arXiv:2210.01504.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from didact.data.encode import TokenizedExample
from didact.infer import generate
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions


@dataclass(frozen=True)
class Memorised:
    """Memorisation of a text: extraction likelihood EL_n and memorisation accuracy MA."""

    el: float
    ma: float


def overlap(a: Sequence[int], b: Sequence[int], n: int) -> float:
    """Share of the n-grams of `a` that are n-grams of `b`; 0 if `a` has none."""
    ngrams = [tuple(a[i : i + n]) for i in range(len(a) - n + 1)]
    reference = {tuple(b[i : i + n]) for i in range(len(b) - n + 1)}
    return sum(g in reference for g in ngrams) / len(ngrams) if ngrams else 0.0


def memorised(model: Model, row: TokenizedExample, n: int = 10) -> Memorised:
    """EL_n and MA of a row's completion; n is limited to its length.

    The model generates a continuation from every prefix, compared with the true rest of the text.
    """
    text = row.completion
    size = min(n, len(text))
    starts = range(len(text) - size + 1)
    prompts = [row.prompt + text[:t] for t in starts]
    completions = generate.completions(model, prompts, 1, generate.SamplingConfig(max_new_tokens=len(text)))
    el = [overlap(c.tokens[: len(text) - t], text[t:], size) for t, (c,) in zip(starts, completions, strict=True)]
    right = torch.cat([v["c"] for _, _, v in forward.score(model, [row], {"c": token_functions.correct})])
    return Memorised(float(np.mean(el)), float(right.mean()))


def mean(model: Model, rows: Sequence[TokenizedExample], n: int = 10) -> tuple[float, float]:
    """Mean EL_n and MA over rows."""
    results = [memorised(model, row, n) for row in rows]
    return float(np.mean([r.el for r in results])), float(np.mean([r.ma for r in results]))
