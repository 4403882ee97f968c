"""N-grams of a prompt so far as predictors of its next symbol: with back-off, and smoothed by a network taught to.

Symbols are 0 to V - 1, the separator between strings is V, what lies behind the end V + 1; no n-gram reaches over it.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973, section 5 and appendix (back-off, learned smoothing).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from didact.learn import episodes
from didact.models import ngram_heads

Array = NDArray[np.float64]
LONGEST, HIDDEN = 3, 16  # of the smoothing: n-grams, and the width of its network
STEPS, ROWS, RATE = 150, 16, 2e-2  # of its training, by Adam


def counts(ids: NDArray[np.int64], symbols: int, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of contexts of 0 to n - 1 tokens: how often each symbol followed before, `(B, T, V)`, and where there is one."""
    read = torch.from_numpy(np.concatenate([np.full((len(ids), 1), symbols), ids], 1))  # all strings begin alike
    seen = F.one_hot(read, symbols + 2).double()[..., :symbols]
    yield seen.cumsum(1)[:, :-1], torch.ones_like(read[:, :-1], dtype=torch.bool)
    t = torch.arange(read.shape[1])
    for size in range(1, n):
        group = ngram_heads.groups(read, size, boundary=symbols)
        follows = F.pad(group[:, :-1], (1, 0), value=-2)
        match = (group[:, :, None] == follows[:, None]) & (t <= t[:, None]) & (group >= 0)[..., None]
        yield (match.double() @ seen)[:, :-1], (group >= 0)[:, :-1]


def followers(ids: NDArray[np.int64], symbols: int, n: int) -> Array:
    """What an n-gram model of the prompt so far predicts, `(B, T, V)`, backing off to shorter ones.

    With c(w) the times the context w was met, this one counted, a symbol that followed it k times has k / c(w); what is
    left goes to the others by the shorter context. The shortest counts every symbol once more than it was met.
    """
    (count, _), *longer = counts(ids, symbols, n)
    out = (count + 1) / (count + 1).sum(-1, keepdim=True)
    for count, there in longer:
        total = count.sum(-1, keepdim=True) + 1
        rest = torch.where(count > 0, 0.0, out)
        left = rest.sum(-1, keepdim=True)
        made = torch.where(left > 0, count / total + rest / left.clamp(min=1e-300) / total, count / (total - 1))
        out = torch.where(there[..., None], made, out)
    return np.asarray(out.numpy())


class Smoothing(nn.Module):
    """Turns counts into a distribution: one small network that scores each symbol by how often it followed the last 0,
    1 and 2 tokens, and how often those were met."""

    def __init__(self, n: int = LONGEST) -> None:
        super().__init__()
        self.n = n
        self.layers = nn.Sequential(
            nn.Linear(3 * n, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, ids: NDArray[np.int64], symbols: int) -> Tensor:
        """Log-probabilities `(B, T, V)` of what comes at every place."""
        return self.of(features(ids, symbols, self.n))

    def of(self, seen: Tensor) -> Tensor:
        """The same, of `features`."""
        scores: Tensor = self.layers(seen)[..., 0]
        return scores.log_softmax(-1)


def features(ids: NDArray[np.int64], symbols: int, n: int) -> Tensor:
    """Of every symbol at every place, `(B, T, V, 3 n)`."""
    out = []
    for count, _ in counts(ids, symbols, n):
        total = count.sum(-1, keepdim=True)
        out += [count.log1p(), count / total.clamp(min=1), total.log1p().expand_as(count)]
    return torch.stack(out, -1).float()


@episodes.one_thread()
def smoothing(ids: NDArray[np.int64], symbols: int, seed: int = 0, steps: int = STEPS) -> Smoothing:
    """Train a `Smoothing` on prompts, to predict the symbols that came."""
    draw = np.random.default_rng([seed, 19])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Smoothing()
    optimizer = torch.optim.Adam(made.parameters(), lr=RATE)
    seen = torch.cat([features(some, symbols, made.n) for some in np.array_split(ids, -(-len(ids) // ROWS))])
    came = torch.from_numpy(np.where(ids < symbols, ids, -100))
    for _ in range(steps):
        some = torch.from_numpy(draw.integers(len(ids), size=ROWS))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(made.of(seen[some]).flatten(0, 1), came[some].flatten()).backward()
        optimizer.step()
    return made.eval().requires_grad_(False)
