"""Perplexity of several models on the same documents, with intervals over documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from didact.data import encode
from didact.evaluate import statistics
from didact.evaluate.statistics import Interval
from didact.models import forward, ngram_heads
from didact.models.model import Model
from didact.types import Metric

Array = NDArray[np.float64]


def sums(model: Model, documents: Sequence[str], window: int) -> tuple[Array, Array]:
    """Return -log p SUMMED over the tokens of every document, read in windows, and the token counts: `(D,), (D,)`."""
    parts = [encode.windows(model.tokenizer, [text], window) for text in documents]
    rows = [row for part in parts for row in part]
    document = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    logp, count = (v.double().numpy() for v in forward.row_logp(model, rows))
    total, tokens = (np.bincount(document, values, len(parts)).astype(float) for values in (-logp, count))
    return total, tokens


def per_token(total: Array, count: Array) -> Interval:
    """Interval of the mean over tokens, `sum total / sum count`, with documents as units.

    Student's t interval of the ratio by its linearisation, `R + (total_d - R count_d) / mean(count)`.
    """
    rate = total.sum() / count.sum()
    return statistics.mean_interval(rate + (total - rate * count) / count.mean())


def findings(arms: Mapping[str, Model], documents: Sequence[str], window: int) -> dict[str, Any]:
    """Return nats per token and perplexity of every arm, and how many more nats than the first arm each one needs.

    All arms must share one tokenizer.
    """
    out: dict[str, Any] = {"documents": len(documents), "arms": {}, "gain_over": {}}
    first: Array | None = None
    for name, model in arms.items():
        total, count = sums(model, documents, window)
        interval = per_token(total, count)
        out["tokens"] = int(count.sum())
        out["arms"][name] = interval._asdict() | {"perplexity": math.exp(interval.estimate)}
        if first is None:
            first = total
        else:
            out["gain_over"][name] = per_token(total - first, count)._asdict()
    return out


def looked_up(model: Model, documents: Sequence[str], window: int, sizes: Sequence[int]) -> dict[int, float]:
    """Share of the tokens at which a head of size n has a match: the last n tokens occurred before in the window."""
    rows = [row for text in documents for row in encode.windows(model.tokenizer, [text], window)]
    out = {}
    for n in sizes:
        plans = [ngram_heads.plan(torch.tensor([row.completion]), n) for row in rows]
        out[n] = float(sum((p.count > 0).sum().item() for p in plans) / sum(len(p.count) for p in plans))
    return out


def metrics(results: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of the arm with heads from `findings`; before: the control, if there is one."""
    heads, control = (results["arms"].get(arm) for arm in ("heads", "control"))
    before, ci = control["estimate"] if control else None, (heads["low"], heads["high"])
    text = "held-out loss per token; before: as many weights without look-up"
    return {
        "nll": Metric(
            after=heads["estimate"],
            before=before,
            n=results["documents"],
            ci=ci,
            better="lower",
            help=text,
            unit="nats",
        ),
    }
