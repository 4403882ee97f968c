"""Function classes that an in-context regressor is trained on, and their mixtures: `x (B, T, d)`, `y (B, T, 1)`.

A class is called as `cls(seed, prompts)` and is pure in both. Classes with Gaussian weights, `f(x) = w . phi(x)` with
`w ~ N(mean, std^2)`, have an exact posterior mean in closed form (`evaluate.references.bayes`), and so have mixtures.

Sources: Panwar et al. 2024, openreview HX5ujdsSon, sections 2-5; Garg et al. 2022, arXiv:2208.01066, section 2.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from didact.data.streams import Tensors
from didact.learn import fit as loop

Array = NDArray[np.float64]
Basis = Literal["linear", "fourier", "haar", "monomials"]


@dataclass(frozen=True, kw_only=True)
class Functions:
    """Base of all function classes.

    Args:
        dim: number of inputs d; 1 with the fourier and haar basis.
        rows: rows of a prompt T.
        noise: standard deviation of the noise added to every target.
        used: number of inputs that are not set to 0; all by default.
    """

    dim: int = 20
    rows: int = 41
    noise: float = 0.0
    used: int | None = None

    def inputs(self, rng: np.random.Generator, count: int) -> Array:
        """`(count, T, d)`, standard normal."""
        return rng.standard_normal((count, self.rows, self.dim))

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """`f(x)` for one random function per prompt, `(count, T)`."""
        raise NotImplementedError

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Inputs and noisy targets."""
        x = self.inputs(rng, count)
        if self.used is not None:
            x[..., self.used :] = 0
        return x, self.values(rng, x) + self.noise * rng.standard_normal(x.shape[:2])

    def __call__(self, seed: int | Sequence[int], tasks: int) -> Tensors:
        """Draw prompts."""
        return as_batch(*self.drawn(np.random.default_rng(seed), tasks))


@dataclass(frozen=True, kw_only=True)
class Gaussian(Functions):
    """`f(x) = w . phi(x)`, `w ~ N(mean, std^2)`: dense regression, Fourier series, Haar wavelets, monomials.

    Args:
        basis: phi. `fourier`: 1, cos(k pi x / L), sin(k pi x / L) over sqrt(K), k up to `size`; `haar`: wavelets of
            `size` levels; `monomials`: the products named by `supports`.
        size: K or the levels.
        half_width: L; inputs of one dimension are uniform in (-L, L).
        mean: of the weights, one number for all or one for each.
        std: of the weights, one number for all or one for each.
        supports: for each monomial the coordinates that it multiplies.
    """

    basis: Basis = "linear"
    size: int = 10
    half_width: float = 5.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    supports: tuple[tuple[int, ...], ...] = ()

    def inputs(self, rng: np.random.Generator, count: int) -> Array:
        """Uniform for a basis on an interval, else standard normal."""
        if self.basis in ("fourier", "haar"):
            return rng.uniform(-self.half_width, self.half_width, (count, self.rows, 1))
        return super().inputs(rng, count)

    def features(self, x: Any) -> Any:
        """phi of x `(..., d)`, as `(..., F)`; a numpy array or a torch tensor, as x is."""
        lib: Any = torch if isinstance(x, torch.Tensor) else np
        if self.basis == "linear":
            return x
        if self.basis == "monomials":
            return lib.stack([math.prod(x[..., i] for i in support) for support in self.supports], -1)
        z = x[..., 0] / self.half_width
        if self.basis == "fourier":
            waves = [wave(k * math.pi * z) for k in range(1, self.size + 1) for wave in (lib.cos, lib.sin)]
            return lib.stack([lib.ones_like(z), *waves], -1) / math.sqrt(self.size)
        u, parts = (z + 1) / 2, [lib.ones_like(z)]
        for level in range(self.size):
            for shift in range(2**level):
                v = u * 2**level - shift
                parts.append(2 ** (level / 2) * (1.0 * ((v >= 0) & (v < 0.5)) - 1.0 * ((v >= 0.5) & (v < 1))))
        return lib.stack(parts, -1)

    @property
    def width(self) -> int:
        """F, the number of features."""
        sizes = {"linear": self.dim, "fourier": 1 + 2 * self.size, "haar": 2**self.size}
        return sizes.get(self.basis, len(self.supports))

    def prior(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the weights, `(F,)` each."""
        return tuple(np.broadcast_to(np.asarray(v, float), (self.width,)).copy() for v in (self.mean, self.std))  # type: ignore[return-value]

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw fresh weights for every prompt."""
        mean, std = self.prior()
        w = mean + std * rng.standard_normal((len(x), self.width))
        return (self.features(x) @ w[..., None])[..., 0]


@dataclass(frozen=True, kw_only=True)
class Sparse(Functions):
    """Dense regression with all but `active` weights zero, the same number in every function."""

    active: int = 3

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw fresh weights for every prompt."""
        active = rng.random((len(x), self.dim)).argsort(1) < self.active
        return _linear(x, active * rng.standard_normal((len(x), self.dim)))


@dataclass(frozen=True, kw_only=True)
class Signs(Functions):
    """Weights in {-1, +1}, outputs over sqrt(d)."""

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw fresh signs for every prompt."""
        return _linear(x, rng.choice([-1.0, 1.0], (len(x), self.dim))) / math.sqrt(self.dim)


@dataclass(frozen=True, kw_only=True)
class Laplace(Functions):
    """Weights of Laplace(0, scale): the prior under which the lasso is the likeliest function."""

    scale: float = 1.0

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw fresh weights for every prompt."""
        return _linear(x, rng.laplace(scale=self.scale, size=(len(x), self.dim)))


@dataclass(frozen=True, kw_only=True)
class LowRank(Functions):
    """`w = vec(B^T B)`, B of `rank` rows of N(0, 1) on a side of sqrt(d); outputs over the rank."""

    rank: int = 1

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw a fresh matrix for every prompt."""
        side = math.isqrt(self.dim)
        if side * side != self.dim:
            raise ValueError(f"dim = {self.dim}: the weights are a square matrix, so it must be a square")
        b = rng.standard_normal((len(x), self.rank, side))
        return _linear(x, (b.transpose(0, 2, 1) @ b).reshape(len(x), -1)) / self.rank


@dataclass(frozen=True, kw_only=True)
class Tree(Functions):
    """A full binary tree of `depth`: every node tests the sign of one coordinate, every leaf is N(0, 1)."""

    depth: int = 4

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw a fresh tree for every prompt."""
        prompt, node = np.arange(len(x))[:, None], np.zeros(x.shape[:2], dtype=int)
        coordinates = rng.integers(self.dim, size=(len(x), 2**self.depth - 1))
        leaves = rng.standard_normal((len(x), 2**self.depth))
        for _ in range(self.depth):
            tested = np.take_along_axis(x, coordinates[prompt, node][..., None], 2)[..., 0]
            node = 2 * node + 1 + (tested > 0)
        values: Array = leaves[prompt, node - (2**self.depth - 1)]
        return values


@dataclass(frozen=True, kw_only=True)
class Network(Functions):
    """Two layers with ReLU, all weights N(0, 1), outputs over sqrt(hidden / 2) sqrt(d)."""

    hidden: int = 100

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw a fresh network for every prompt."""
        first = rng.standard_normal((len(x), self.dim, self.hidden))
        return _linear(np.maximum(x @ first, 0), rng.standard_normal((len(x), self.hidden))) / math.sqrt(
            self.hidden / 2 * self.dim
        )


@dataclass(frozen=True, kw_only=True)
class Pool(Functions):
    """Linear regression whose weights are one of `tasks`, drawn once from N(0, I): task diversity.

    Args:
        tasks: number of functions in the pool.
        seed: seed of the pool.
    """

    tasks: int = 128
    seed: int = 0

    @functools.cached_property
    def weights(self) -> Array:
        """`(tasks, d)`."""
        return np.random.default_rng([self.seed, self.tasks]).standard_normal((self.tasks, self.dim))

    def values(self, rng: np.random.Generator, x: Array) -> Array:
        """Draw one function of the pool for every prompt."""
        return _linear(x, self.weights[rng.integers(self.tasks, size=len(x))])


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A class drawn by weight for every prompt, then one of its functions.

    Args:
        parts: classes with equal numbers of inputs and rows.
        alpha: their weights; equal by default.
        per_batch: one class for a whole batch, as the official code draws it.
    """

    parts: tuple[Any, ...]
    alpha: tuple[float, ...] = ()
    per_batch: bool = False

    @property
    def dim(self) -> int:
        """d."""
        return int(self.parts[0].dim)

    @property
    def rows(self) -> int:
        """T."""
        return int(self.parts[0].rows)

    @property
    def shares(self) -> Array:
        """Weights that sum to one."""
        raw = np.asarray(self.alpha or (1.0,) * len(self.parts), float)
        return raw / raw.sum()

    def __call__(self, seed: int | Sequence[int], tasks: int) -> Tensors:
        """Draw prompts; `part (B,)` is the index of the class of each."""
        rng = np.random.default_rng(seed)
        part = rng.choice(len(self.parts), size=1 if self.per_batch else tasks, p=self.shares)
        part = np.broadcast_to(part, (tasks,))
        first = self.parts[0]
        x, y = np.empty((tasks, first.rows, first.dim)), np.empty((tasks, first.rows))
        for number, functions in enumerate(self.parts):
            if (chosen := part == number).any():
                x[chosen], y[chosen] = functions.drawn(rng, int(chosen.sum()))
        batch = as_batch(x, y)
        return Tensors({**batch.tensors, "part": torch.from_numpy(part.copy())})


@dataclass(frozen=True)
class Curriculum:
    """A class or mixture shown with 5 inputs and 11 rows at first, and one input and two rows more every `every` steps.

    The last number of a batch's seed is its step.
    """

    law: Any
    every: int

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw the batch of a step."""
        stage = seed[-1] // self.every
        limits = {"used": min(5 + stage, self.law.dim), "rows": min(11 + 2 * stage, self.law.rows)}
        parts = [dataclasses.replace(p, **limits) for p in getattr(self.law, "parts", (self.law,))]
        law = dataclasses.replace(self.law, parts=tuple(parts)) if isinstance(self.law, Mixture) else parts[0]
        drawn: Tensors = law(seed, tasks)
        return drawn


def supports(dim: int, size: int = 3, limit: int | None = None, seed: int = 0) -> list[tuple[int, ...]]:
    """Sets of `size` coordinates: all of them, or `limit` at random."""
    subsets = list(itertools.combinations(range(dim), size))
    if limit is None or limit >= len(subsets):
        return subsets
    return [subsets[i] for i in sorted(np.random.default_rng(seed).permutation(len(subsets))[:limit])]


def as_batch(x: Array, y: Array) -> Tensors:
    """Prompts as tensors, in float32."""
    parts = {"x": x, "y": y[..., None]}
    return Tensors({k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for k, v in parts.items()})


def position_loss(module: nn.Module, batch: Tensors) -> loop.Terms:
    """`(prediction - y)^2`, the mean over all positions and prompts."""
    errors = (module(batch["x"], batch["y"]) - batch["y"]).square()
    return {"mse": loop.Term(errors.sum() / batch["y"].shape[1], "rows")}


def _linear(x: Array, w: Array) -> Array:
    return (x @ w[..., None])[..., 0]
