"""N-gram heads: attention without weights that looks up what followed earlier occurrences of the last n tokens.

With `M[t, j] = 1` if the n tokens that end at j equal those that end at t, and j < t,

    A[t, i] = M[t, i - 1] for i < t, every row divided by its sum (no match: a row of zeros),
    NGH_n(h)[t] = W1 (A h)[t] + W2 h[t],      h <- h + NGH_n(norm(h)).

A head with n = 1 is an induction head. `weights` is that definition, quadratic in the length; `look_up` computes the
same product without A: positions are sorted by the n-gram that ends there, and a running sum over every group of equal
ones gives the result, in T log T time and memory proportional to T.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from didact.models.insert import Reading
from didact.types import UserError

Lookup = Literal["ngram", "zero", "uniform"]
FEW = 8  # up to so many queries, as in a decoding step, rows of A itself are cheaper than sorting all columns
CHUNK = 1 << 20  # entries of running sums held at once, in double precision


class NGramHead(nn.Module):
    """A mixer for `models.insert`.

    Args:
        width: D of the decoder.
        n: tokens that must be equal.
        lookup: the states to look up: the followers; for baselines with as many weights, nothing (`zero`) or the mean
            of all earlier states (`uniform`).
        boundary: a token that an n-gram may begin with, but not cross.
        zero: initialise as the identity.
    """

    def __init__(
        self, width: int, n: int, lookup: Lookup = "ngram", boundary: int | None = None, zero: bool = True
    ) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.n, self.lookup, self.boundary = n, lookup, boundary
        self.norm = nn.RMSNorm(width)
        self.found, self.own = nn.Linear(width, width), nn.Linear(width, width)
        if zero:
            for layer in (self.found, self.own):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, reading: Reading, layer: nn.Module | None = None) -> Tensor:
        """Return what the head adds, `(B, T, D)`."""
        if reading.tokens is None:
            raise UserError("n-gram heads read token ids: give the model input_ids, not inputs_embeds")
        normed = self.norm(states)
        earlier = reading.remember(normed)
        assert reading.ids is not None and reading.documents is not None
        if self.lookup == "zero":
            looked_up = torch.zeros_like(normed)
        else:
            # All columns of a document are the same 0-gram: its followers are all earlier columns.
            n = self.n if self.lookup == "ngram" else 0
            looked_up = look_up(earlier, reading.ids, n, reading.documents, states.shape[1], self.boundary)
        out: Tensor = self.found(looked_up) + self.own(normed)
        return out


def groups(ids: Tensor, n: int, documents: Tensor | None = None, boundary: int | None = None) -> Tensor:
    """Number the n-gram that ends at every position, `(B, T)`; equal numbers in a row: equal n-grams of one document.

    -1 if there is none: on padding, if fewer than n tokens precede in the document, or if it would cross `boundary`.
    """
    if documents is None:
        documents = torch.zeros_like(ids)
    row = torch.arange(len(ids), device=ids.device)[:, None]
    _, group = (row * (int(documents.max()) + 2) + documents + 1).unique(return_inverse=True)
    exists = documents >= 0
    for step in range(n):
        if step:
            group = nn.functional.pad(group[:, :-1], (1, 0))
            continues = documents[:, 1:] == documents[:, :-1]
            if boundary is not None:
                continues = continues & (ids[:, 1:] != boundary)
            # The (n-1)-gram that ends one position earlier, in the same document.
            exists = exists & nn.functional.pad(exists[:, :-1] & continues, (1, 0))
        key = group * (int(ids.max()) + 2) + ids + 1
        _, group = key.unique(return_inverse=True)
    return group.masked_fill(~exists, -1)


def weights(
    ids: Tensor, n: int, documents: Tensor | None = None, queries: int | None = None, boundary: int | None = None
) -> Tensor:
    """Compute A by its definition, `(B, Q, T)`, for the last `queries` positions (all by default)."""
    if documents is None:
        documents = torch.zeros_like(ids)
    group = groups(ids, n, documents, boundary)
    width = ids.shape[1]
    last = slice(width - (width if queries is None else queries), width)
    followed = nn.functional.pad(group[:, :-1], (1, 0), value=-2)  # n-gram that position i follows
    followed = followed.masked_fill((documents < 0) | (followed < 0), -2)
    t = torch.arange(width, device=ids.device)
    match = (group[:, last, None] == followed[:, None]) & (t < t[last, None])
    match = match & (documents[:, last, None] == documents[:, None])
    return match.double() / match.sum(-1, keepdim=True).clamp(min=1)


def look_up(
    states: Tensor,
    ids: Tensor,
    n: int,
    documents: Tensor | None = None,
    queries: int | None = None,
    boundary: int | None = None,
) -> Tensor:
    """Compute `A @ states`, `(B, Q, D)`, for the last `queries` positions (all by default), summed in float64."""
    width = states.shape[1]
    count = width if queries is None else queries
    if count <= FEW < width:
        precise = states if states.dtype == torch.float64 else states.float()
        return (weights(ids, n, documents, count, boundary).to(precise) @ precise).to(states)
    out: Tensor = _LookUp.apply(states, plan(ids, n, documents, boundary))
    return out[:, width - count :]


@dataclass(frozen=True)
class Plan:
    """Positions `(N = B T,)` sorted by their n-gram, and for every place in that order the range of its sum.

    Attributes:
        order: the positions themselves.
        follower: the position after each, N if it has none.
        first: place of the first equal n-gram, where the sum starts.
        last: place before which the sum ends: it covers the followers of earlier equal n-grams, without the position
            itself (if an equal n-gram ended one token before).
        count: number of followers in the sum.
    """

    order: Tensor
    follower: Tensor
    first: Tensor
    last: Tensor
    count: Tensor


def plan(ids: Tensor, n: int, documents: Tensor | None = None, boundary: int | None = None) -> Plan:
    """Compute the sums of `look_up` for these ids, independent of the states."""
    if documents is None:
        documents = torch.zeros_like(ids)
    size, width = ids.numel(), ids.shape[1]
    group = groups(ids, n, documents, boundary).flatten()
    order = group.argsort(stable=True)
    ranked = group[order]
    places = torch.arange(size, device=ids.device)
    new = nn.functional.pad(ranked[1:] != ranked[:-1], (1, 0), value=True)
    first = torch.where(new, places, 0).cummax(0).values
    flat = nn.functional.pad(documents.flatten(), (0, 1), value=-1)
    follows = (flat[order + 1] == flat[order]) & ((order + 1) % width != 0) & (ranked >= 0)
    follower = torch.where(follows, order + 1, size)
    touches = nn.functional.pad(order[1:] == order[:-1] + 1, (1, 0)) & (places > first)
    last = torch.where(ranked >= 0, places - touches.long(), first)
    running = nn.functional.pad(follows.long().cumsum(0), (1, 0))
    return Plan(order, follower, first, last, running[last] - running[first])


class _LookUp(torch.autograd.Function):
    """`A @ states`, backward `A^T @ gradient`, some columns of the states at a time."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        rows, width, size = states.shape
        flat, out = states.reshape(rows * width, size), torch.empty_like(states).view(rows * width, size)
        for part in _parts(size, rows * width):
            followers = nn.functional.pad(flat[:, part].double(), (0, 0, 0, 1))[plan.follower]
            running = nn.functional.pad(followers.cumsum(0), (0, 0, 1, 0))
            total = running[plan.last] - running[plan.first]
            out[plan.order, part] = (total / plan.count.clamp(min=1)[:, None]).to(states.dtype)
        return out.view_as(states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        plan, (grad,) = ctx.plan, grads
        rows, width, size = grad.shape
        flat, out = grad.reshape(rows * width, size), torch.zeros_like(grad).view(rows * width, size)
        has_follower = plan.follower < rows * width
        for part in _parts(size, rows * width):
            shares = flat[plan.order, part].double() / plan.count.clamp(min=1)[:, None]
            change = shares.new_zeros(len(shares) + 1, shares.shape[1])
            change.index_add_(0, plan.last, shares).index_add_(0, plan.first, shares, alpha=-1)
            # Place p is part of the running sums at p + 1 and all later places.
            totals = change.sum(0) - change.cumsum(0)
            out[plan.follower[has_follower], part] = totals[:-1][has_follower].to(grad.dtype)
        return out.view_as(grad), None


def _parts(size: int, rows: int) -> list[slice]:
    step = max(1, CHUNK // max(rows, 1))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
