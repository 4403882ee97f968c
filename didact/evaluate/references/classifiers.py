"""What a user would otherwise classify a few rows with, at every position of a sequence from the rows before it:
nearest neighbours, nearest centroid, logistic regression, a network by gradient descent. `x (B, T, d)`, `label (B, T)`;
predicted slots `(B, T)`.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def neighbours(x: Tensor, label: Tensor, slots: int, k: int = 1) -> Tensor:
    """The commonest class of the k nearest rows before, the first of those that tie; all rows where they are fewer."""
    votes = F.one_hot(label, slots).double()
    apart = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    length = x.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu()
    near = apart.masked_fill(later, torch.inf).topk(min(k, length), largest=False)
    found = votes.gather(1, near.indices.flatten(1)[..., None].expand(-1, -1, slots))
    found = found.view(*near.indices.shape, slots) * near.values.isfinite()[..., None]
    return found.sum(2).argmax(-1)


def centroids(x: Tensor, label: Tensor, slots: int) -> Tensor:
    """The class whose rows before have the nearest mean; slot 0 where there are none."""
    shown = F.one_hot(label, slots).double()
    sums, count = torch.einsum("btc,btd->btcd", shown, x.double()).cumsum(1), shown.cumsum(1)
    before, seen = F.pad(sums, (0, 0, 0, 0, 1, 0))[:, :-1], F.pad(count, (0, 0, 1, 0))[:, :-1]
    mean = before / seen.clamp(min=1)[..., None]
    apart = (mean - x.double()[:, :, None]).square().sum(-1)
    return apart.masked_fill(seen == 0, torch.inf).argmin(-1)


def logistic(x: Tensor, label: Tensor, position: int) -> Tensor:
    """Scikit-learn's logistic regression on the rows before one position, a model a sequence: `(B,)`."""
    from sklearn.linear_model import LogisticRegression

    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations
        for rows, classes in zip(x.double().numpy(), label.numpy(), strict=True):
            seen = classes[:position]
            if len(np.unique(seen)) < 2:
                out.append(int(seen[0]) if position else 0)
                continue
            out.append(int(LogisticRegression().fit(rows[:position], seen).predict(rows[position : position + 1])[0]))
    return torch.tensor(out)


def perceptron(
    x: Tensor, label: Tensor, slots: int, rate: float, steps: int = 0, width: int = 64, seed: int = 0
) -> Tensor:
    """A network with one hidden layer for every sequence, from the same fresh weights, trained on its rows by SGD.

    Args:
        x: rows.
        label: their slots.
        slots: C.
        rate: of SGD.
        steps: of the network that predicts the last row: each on all rows before it, `(B,)`. By default each row is
            predicted, and then one step is made on it alone: `(B, T)`.
        width: of the hidden layer.
        seed: of the weights.
    """
    count, length, d = x.shape
    fresh = torch.Generator().manual_seed(seed)
    shapes = ((d, width), (1, width), (width, slots), (1, slots))
    drawn = [torch.randn(s, generator=fresh) / s[0] ** 0.5 if s[0] > 1 else torch.zeros(s) for s in shapes]
    weights = [w.to(x).repeat(count, 1, 1).requires_grad_() for w in drawn]

    def logits(rows: slice) -> Tensor:
        hidden = (x[:, rows] @ weights[0] + weights[1]).relu()
        return hidden @ weights[2] + weights[3]

    def step(rows: slice, said: Tensor) -> None:
        losses = F.cross_entropy(said.transpose(1, 2), label[:, rows], reduction="none").mean(1)
        for weight, change in zip(weights, torch.autograd.grad(losses.sum(), weights), strict=True):
            weight.data -= rate * change

    if steps:
        seen = slice(length - 1)
        for _ in range(steps):
            step(seen, logits(seen))
        return logits(slice(length - 1, length)).argmax(-1)[:, 0]
    out = []
    for rows in itertools.starmap(slice, itertools.pairwise(range(length + 1))):
        said = logits(rows)
        out.append(said.argmax(-1))
        step(rows, said)
    return torch.cat(out, 1)
