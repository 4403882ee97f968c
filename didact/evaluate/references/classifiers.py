"""Standard classifiers for few rows, at every position of a sequence from the rows before it: nearest neighbours,
nearest centroid, logistic regression, a network by gradient descent. `x (B, T, d)`, `label (B, T)`; predicted slots
`(B, T)`.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def neighbours(x: Tensor, label: Tensor, slots: int, k: int = 1) -> Tensor:
    """The commonest class of the k nearest rows before (the first in a tie), or of all rows if there are fewer."""
    votes = F.one_hot(label, slots).double()
    distance = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    length = x.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu()
    near = distance.masked_fill(later, torch.inf).topk(min(k, length), largest=False)
    nearest = votes.gather(1, near.indices.flatten(1)[..., None].expand(-1, -1, slots))
    nearest = nearest.view(*near.indices.shape, slots) * near.values.isfinite()[..., None]
    return nearest.sum(2).argmax(-1)


def centroids(x: Tensor, label: Tensor, slots: int) -> Tensor:
    """The class whose rows before have the nearest mean; slot 0 if there are none."""
    onehot = F.one_hot(label, slots).double()
    sums, counts = torch.einsum("btc,btd->btcd", onehot, x.double()).cumsum(1), onehot.cumsum(1)
    sums_before, counts_before = F.pad(sums, (0, 0, 0, 0, 1, 0))[:, :-1], F.pad(counts, (0, 0, 1, 0))[:, :-1]
    mean = sums_before / counts_before.clamp(min=1)[..., None]
    distance = (mean - x.double()[:, :, None]).square().sum(-1)
    return distance.masked_fill(counts_before == 0, torch.inf).argmin(-1)


def logistic(x: Tensor, label: Tensor, position: int) -> Tensor:
    """Scikit-learn's logistic regression on the rows before one position, one model per sequence: `(B,)`."""
    from sklearn.linear_model import LogisticRegression

    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about convergence
        for rows, classes in zip(x.double().numpy(), label.numpy(), strict=True):
            known = classes[:position]
            if len(np.unique(known)) < 2:
                out.append(int(known[0]) if position else 0)
                continue
            out.append(int(LogisticRegression().fit(rows[:position], known).predict(rows[position : position + 1])[0]))
    return torch.tensor(out)


def perceptron(
    x: Tensor, label: Tensor, slots: int, rate: float, steps: int = 0, width: int = 64, seed: int = 0
) -> Tensor:
    """A network with one hidden layer for every sequence, from the same fresh weights, trained on its rows by SGD.

    Args:
        x: rows.
        label: their slots.
        slots: C.
        rate: learning rate.
        steps: full-batch steps on all rows before the last, which is predicted: `(B,)`. By default each row is
            predicted, and then one step is made on it alone: `(B, T)`.
        width: of the hidden layer.
        seed: of the weights.
    """
    count, length, d = x.shape
    generator = torch.Generator().manual_seed(seed)
    shapes = ((d, width), (1, width), (width, slots), (1, slots))
    initial = [torch.randn(s, generator=generator) / s[0] ** 0.5 if s[0] > 1 else torch.zeros(s) for s in shapes]
    weights = [w.to(x).repeat(count, 1, 1).requires_grad_() for w in initial]

    def logits(rows: slice) -> Tensor:
        hidden = (x[:, rows] @ weights[0] + weights[1]).relu()
        return hidden @ weights[2] + weights[3]

    def step(rows: slice, scores: Tensor) -> None:
        losses = F.cross_entropy(scores.transpose(1, 2), label[:, rows], reduction="none").mean(1)
        for weight, grad in zip(weights, torch.autograd.grad(losses.sum(), weights), strict=True):
            weight.data -= rate * grad

    if steps:
        context = slice(length - 1)
        for _ in range(steps):
            step(context, logits(context))
        return logits(slice(length - 1, length)).argmax(-1)[:, 0]
    out = []
    for rows in itertools.starmap(slice, itertools.pairwise(range(length + 1))):
        scores = logits(rows)
        out.append(scores.argmax(-1))
        step(rows, scores)
    return torch.cat(out, 1)
