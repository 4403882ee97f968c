"""Token functions `f(logits (n, V), target (n,), **columns) -> (n,)`: values that need the whole distribution.

`models.forward.tokens` maps them over label tokens in chunks; none of them sees a model. Each docstring
names its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def logp(logits: Tensor, target: Tensor) -> Tensor:
    """log p(target): `(n, V), (n,) -> (n,)`, in nats, computed in float32 or wider."""
    return -F.cross_entropy(wide(logits), target, reduction="none")


def entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Entropy of each predictive distribution, in nats: `-sum_v p_v log p_v`."""
    log_p = F.log_softmax(wide(logits), -1)
    return -(log_p.exp() * log_p).sum(-1)


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """1 where the most likely token is the target."""
    return (logits.argmax(-1) == target).to(wide(logits).dtype)


def any_logp(logits: Tensor, target: Tensor, *, any_of: Sequence[int]) -> Tensor:
    """log of the probability that the token is one of `any_of`, whatever the target is."""
    if len(any_of) == 1:
        return logp(logits, torch.full_like(target, any_of[0]))
    return F.log_softmax(wide(logits), -1)[:, list(any_of)].logsumexp(-1)


def any_correct(logits: Tensor, target: Tensor, *, any_of: Sequence[int]) -> Tensor:
    """1 where the most likely token is one of `any_of`."""
    return torch.isin(logits.argmax(-1), torch.tensor(list(any_of), device=logits.device)).to(wide(logits).dtype)


def kl_from(logits: Tensor, target: Tensor, *, ref_logits: Tensor) -> Tensor:
    """KL(ref || current) per token: what the official NPO code penalises on the retain set."""
    return _kl(wide(ref_logits), wide(logits))


def kl_to(logits: Tensor, target: Tensor, *, ref_logits: Tensor) -> Tensor:
    """KL(current || ref) per token: what the NPO paper writes."""
    return _kl(wide(logits), wide(ref_logits))


def weighted_ascent(logits: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """WGA (open-unlearning): `p^beta log p` with the weight p^beta detached; minimised, it lowers p.

    The weight fades as the token is forgotten, so the ascent ends by itself.
    """
    log_p = logp(logits, target)
    return (beta * log_p).exp().detach() * log_p


def unlikelihood(logits: Tensor, target: Tensor, *, good: Tensor, alpha: float = 1.0) -> Tensor:
    """Likelihood of good tokens, unlikelihood of the others (Welleck et al., 2020, arXiv:1908.04319); `good (n,)` bool.

    -log p if good, else -alpha log(max(1 - p, 1e-20))
    """
    log_p = logp(logits, target)
    penalty = -torch.log((-torch.expm1(log_p)).clamp(min=1e-20))
    return torch.where(good, -log_p, alpha * penalty)


def undial(logits: Tensor, target: Tensor, *, ref_logits: Tensor, beta: float = 10.0) -> Tensor:
    """UNDIAL (open-unlearning): cross-entropy to `softmax(ref_logits - beta onehot(target))`."""
    lowered = wide(ref_logits).scatter_add(
        -1, target[:, None], -beta * torch.ones_like(target[:, None], dtype=wide(ref_logits).dtype)
    )
    return -(F.softmax(lowered, -1) * F.log_softmax(wide(logits), -1)).sum(-1)


def generic_logits(
    translated: Tensor,
    base: Tensor,
    reinforced: Tensor,
    alpha: float = 5.0,
    relu: bool = True,
    normalise: Literal["log_softmax", "raw"] = "log_softmax",
) -> Tensor:
    """Predict as a model that never read a text (Who's Harry Potter, equation 1); all logits are `(n, V)`.

        v = v_translated - alpha relu(v_reinforced - v_base)

    A constant added to one model's logits changes `raw` results, because relu is not shift-invariant; `log_softmax`
    takes log-probs in place of logits.
    """
    if normalise == "log_softmax":
        translated, base, reinforced = (F.log_softmax(wide(x), -1) for x in (translated, base, reinforced))
    rise = reinforced - base
    return translated - alpha * (rise.clamp(min=0) if relu else rise)


def labelled(logits: Tensor, target: Tensor, *, label: Tensor) -> Tensor:
    """Cross-entropy to the given labels `(n,)` in place of the text's tokens; 0 where the label is -100."""
    return F.cross_entropy(wide(logits), label, reduction="none", ignore_index=-100)


def softly_labelled(logits: Tensor, target: Tensor, *, goal: Tensor, kept: Tensor) -> Tensor:
    """KL(softmax(goal) || current) per token, `goal (n, V)`; 0 where `kept (n,)` is 0."""
    return kept * _kl(wide(goal), wide(logits))


def wide(x: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 unchanged."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(p_logits, -1), F.log_softmax(q_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
