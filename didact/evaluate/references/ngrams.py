"""N-gram predictors of the next symbol from the prompt so far: with back-off, and smoothed by a trained network.

Symbols are 0 to V - 1, the separator between strings is V, padding is V + 1; no n-gram crosses a separator.

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
LONGEST, HIDDEN = 3, 16  # of the smoothing: longest n-gram, and hidden width of its network
STEPS, ROWS, RATE = 150, 16, 2e-2  # of its training with Adam


def counts(ids: NDArray[np.int64], symbols: int, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For contexts of 0 to n - 1 tokens: how often each symbol followed before, `(B, T, V)`, and where they exist."""
    padded = torch.from_numpy(np.concatenate([np.full((len(ids), 1), symbols), ids], 1))  # separator first
    onehot = F.one_hot(padded, symbols + 2).double()[..., :symbols]
    yield onehot.cumsum(1)[:, :-1], torch.ones_like(padded[:, :-1], dtype=torch.bool)
    t = torch.arange(padded.shape[1])
    for size in range(1, n):
        group = ngram_heads.groups(padded, size, boundary=symbols)
        follows = F.pad(group[:, :-1], (1, 0), value=-2)
        match = (group[:, :, None] == follows[:, None]) & (t <= t[:, None]) & (group >= 0)[..., None]
        yield (match.double() @ onehot)[:, :-1], (group >= 0)[:, :-1]


def followers(ids: NDArray[np.int64], symbols: int, n: int) -> Array:
    """Predictions of an n-gram model of the prompt so far, `(B, T, V)`, backing off to shorter contexts.

    With c(w) occurrences of the context w, the current one included, a symbol that followed it k times gets k / c(w);
    the rest goes to the other symbols by the shorter context. The shortest adds one to the count of every symbol.
    """
    (count, _), *longer = counts(ids, symbols, n)
    out = (count + 1) / (count + 1).sum(-1, keepdim=True)
    for count, exists in longer:
        total = count.sum(-1, keepdim=True) + 1
        others = torch.where(count > 0, 0.0, out)
        mass = others.sum(-1, keepdim=True)
        mixed = torch.where(mass > 0, count / total + others / mass.clamp(min=1e-300) / total, count / (total - 1))
        out = torch.where(exists[..., None], mixed, out)
    return np.asarray(out.numpy())


class Smoothing(nn.Module):
    """Turns counts into a distribution: one small network that scores each symbol by how often it followed the last 0,
    1 and 2 tokens, and how often those occurred."""

    def __init__(self, n: int = LONGEST) -> None:
        super().__init__()
        self.n = n
        self.layers = nn.Sequential(
            nn.Linear(3 * n, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, ids: NDArray[np.int64], symbols: int) -> Tensor:
        """Log-probabilities `(B, T, V)` of the symbol at every position."""
        return self.of(features(ids, symbols, self.n))

    def of(self, inputs: Tensor) -> Tensor:
        """Log-probabilities from `features`."""
        scores: Tensor = self.layers(inputs)[..., 0]
        return scores.log_softmax(-1)


def features(ids: NDArray[np.int64], symbols: int, n: int) -> Tensor:
    """Features of every symbol at every position, `(B, T, V, 3 n)`."""
    out = []
    for count, _ in counts(ids, symbols, n):
        total = count.sum(-1, keepdim=True)
        out += [count.log1p(), count / total.clamp(min=1), total.log1p().expand_as(count)]
    return torch.stack(out, -1).float()


@episodes.one_thread()
def smoothing(ids: NDArray[np.int64], symbols: int, seed: int = 0, steps: int = STEPS) -> Smoothing:
    """Train a `Smoothing` on prompts, to predict their symbols."""
    rng = np.random.default_rng([seed, 19])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Smoothing()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    inputs = torch.cat([features(batch, symbols, network.n) for batch in np.array_split(ids, -(-len(ids) // ROWS))])
    targets = torch.from_numpy(np.where(ids < symbols, ids, -100))
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(len(ids), size=ROWS))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network.of(inputs[batch]).flatten(0, 1), targets[batch].flatten()).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)
