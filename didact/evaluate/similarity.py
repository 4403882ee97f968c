"""Similarity of two next-token distributions, sensitivity of answers to the order of demonstrations, and where a
similarity lies between a floor and a ceiling.

Distributions are log-probabilities `(Q, V)`, one row per query; every measure returns `(Q,)`, not averaged.

Sources: Shen, Mishra and Khashabi 2024, arXiv:2310.08540; the form of the overlap's cosine with a penalty is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from didact.evaluate import statistics
from didact.evaluate.statistics import Interval

Verdict = Literal["indistinguishable", "different", "inconclusive"]


def token_overlap(p: Tensor, q: Tensor, k: int = 10) -> Tensor:
    """Share of the k likeliest tokens that are the same: `|top_k(p) & top_k(q)| / k`."""
    k = min(k, p.shape[-1])
    return (_top(p, k) & _top(q, k)).sum(-1) / k


def chance_overlap(vocabulary: int, k: int = 10) -> float:
    """The overlap of two random choices of k: the mean of a hypergeometric count, over k."""
    return min(k, vocabulary) / vocabulary


def overlap_cosine(p: Tensor, q: Tensor, k: int = 10, penalty: bool = True) -> Tensor:
    """Cosine of the probabilities of the tokens O that are among the k likeliest of both; 0 if there are none.

    sum_O p q / sqrt(sum_O p^2 sum_O q^2 + (k - |O|))        the last term only with `penalty`
    """
    k = min(k, p.shape[-1])
    both = _top(p, k) & _top(q, k)
    a, b = (x.double().exp() * both for x in (p, q))
    missing = (k - both.sum(-1)) if penalty else torch.zeros(len(p))
    denominator = (a.square().sum(-1) * b.square().sum(-1) + missing).sqrt()
    return torch.where(both.any(-1), (a * b).sum(-1) / denominator.clamp_min(1e-300), 0.0)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """`KL(p || q)` in nats."""
    p, q = p.double(), q.double()
    return (p.exp() * (p - q)).nan_to_num(0.0).sum(-1)


def measures(p: Tensor, q: Tensor, k: int) -> dict[str, float]:
    """All measures, as means over queries."""
    scores = {"overlap": token_overlap(p, q, k), "cosine": overlap_cosine(p, q, k), "kl": divergence(p, q)}
    return {name: float(value.double().mean()) for name, value in scores.items()}


def order_sensitivity(labels: Tensor) -> dict[str, float]:
    """The effect of the order of the demonstrations, from log-probs of labels `(orders, Q, C)`.

    `probability`: the standard deviation over orders of a label's probability, averaged over labels and queries;
    `logit`: the same of its logit, which the ends of [0, 1] do not squeeze; `flips`: the share of pairs of orders
    that answer differently.
    """
    p = labels.double().exp()
    logit = labels.double() - torch.log1p(-p.clamp(max=1 - 1e-12))
    answers = labels.argmax(-1)
    pairs = [float((answers[i] != answers[j]).double().mean()) for i in range(len(p)) for j in range(i)]
    return {
        "probability": float(p.std(0).mean()),
        "logit": float(logit.std(0).mean()),
        "flips": float(np.mean(pairs)) if pairs else math.nan,
    }


def relative(value: Sequence[float], floor: Sequence[float], ceiling: Sequence[float], level: float = 0.95) -> Interval:
    """`(value - floor) / (ceiling - floor)` of the means over units, with the delta method's t interval.

    NaN where the ceiling is not above the floor: nothing lies between them.
    """
    gain = np.asarray(value, dtype=float) - np.asarray(floor, dtype=float)
    span = np.asarray(ceiling, dtype=float) - np.asarray(floor, dtype=float)
    if not span.mean() > 1e-9:
        return Interval(math.nan, math.nan, math.nan)
    estimate = float(gain.mean() / span.mean())
    spread = statistics.mean_interval((gain - estimate * span) / span.mean(), level)
    return Interval(estimate, estimate + spread.low, estimate + spread.high)


def verdict(
    value: Sequence[float], floor: Sequence[float], ceiling: Sequence[float], orders: Sequence[float],
    margin: float = 0.1, order_margin: float = 0.02,
) -> dict[str, Any]:  # fmt: skip
    """Whether a value is as close as the ceiling, and order matters as much: by intervals, not by large p-values.

    Similar: `relative` is above `1 - margin` (not inferior at 5 %); not similar: surely below. As sensitive to order:
    the differences `orders` (one a unit) are equivalent to 0 within `order_margin` (TOST at 5 %); not: surely outside.
    Both make "indistinguishable", either failing "different", anything else "inconclusive".
    """
    ninety, ninetyfive = (relative(value, floor, ceiling, level) for level in (0.9, 0.95))
    similar = None if math.isnan(ninety.low) else True if ninety.low > 1 - margin else None
    similar = False if ninetyfive.high < 1 - margin else similar
    gap = statistics.mean_interval(orders)
    equivalent = (
        statistics.equivalence_p(orders, order_margin) < 0.05 if _varies(orders) else abs(orders[0]) < order_margin
    )
    outside = gap.low > order_margin or gap.high < -order_margin
    same_order = True if equivalent else False if outside else None
    result: Verdict = "inconclusive"
    if similar is False or same_order is False:
        result = "different"
    elif similar and same_order:
        result = "indistinguishable"
    return {"verdict": result, "relative": ninetyfive._asdict(), "order_difference": gap._asdict()}


def log_ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """t interval of the mean of `log(a_i / b_i)`; NaN where any is 0."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not (x > 0).all() or not (y > 0).all():
        return Interval(math.nan, math.nan, math.nan)
    return statistics.mean_interval(np.log(x / y))


# --- directions, ranks and repairs ------------------------------------------------------------------------


def update_cosine(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """SimAOU: `cos(n(a) - n(start), n(b) - n(start))` along the last axis, n scaling a vector to length 1."""
    a, b, start = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a, b, start))
    return torch.nn.functional.cosine_similarity(a - start, b - start, dim=-1, eps=1e-12)


def recovered(start: Any, tuned: Any, prompted: Any) -> float:
    """Rec2FTP: of the answers that fine-tuning repairs, the share that demonstrations repair too; NaN if none."""
    start, tuned, prompted = (np.asarray(x, dtype=bool) for x in (start, tuned, prompted))
    repaired = ~start & tuned
    return float((repaired & prompted).sum() / repaired.sum()) if repaired.any() else math.nan


def kendall(a: Any, b: Any) -> float:
    """Kendall's tau-b of two rankings; NaN if either is all ties."""
    return float(stats.kendalltau(np.asarray(a), np.asarray(b)).statistic)


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """`{measure: {estimate, low, high}}` over units; NaN units are left out, and counted."""
    out = {}
    for name in rows[0]:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        interval = statistics.mean_interval(values) if values else Interval(math.nan, math.nan, math.nan)
        out[name] = {
            **interval._asdict(),
            **({"undefined": len(rows) - len(values)} if len(values) < len(rows) else {}),
        }
    return out


def _top(p: Tensor, k: int) -> Tensor:
    return torch.zeros_like(p, dtype=torch.bool).scatter_(-1, p.topk(k, -1).indices, True)


def _varies(values: Sequence[float]) -> bool:
    return len(values) > 1 and float(np.ptp(np.asarray(values))) > 0
