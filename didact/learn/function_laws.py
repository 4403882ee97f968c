"""Function classes by name, as options give them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from didact.bounds import Count, NonNegative, Positive, Whole
from didact.learn.functions import (
    Curriculum,
    Functions,
    Gaussian,
    Laplace,
    LowRank,
    Mixture,
    Network,
    Pool,
    Signs,
    Sparse,
    Tree,
    supports,
)  # fmt: skip
from didact.types import UserError

Name = Literal[
    "dense", "sparse", "signs", "laplace", "low-rank", "tree", "network", "pool", "two-means", "fourier",
    "fourier-low", "fourier-high", "haar", "monomials",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FunctionConfig:
    """The function class that is learned in context. Several names are a mixture: one is drawn for every prompt.

    Args:
        names: dense (linear), sparse, signs, laplace, low-rank, tree, network; pool, a finite set of linear functions;
            two-means, Gaussian weights around one of two means; fourier, fourier-low and fourier-high (series of the
            lowest or highest M frequencies, M uniform), haar; monomials, products of two inputs.
        alpha: mixture weights of the names; equal by default.
        dim: number of inputs d; always 1 for fourier and haar.
        rows: rows of a prompt.
        noise: standard deviation of the noise added to targets.
        tasks: number of functions of a pool, or of supports of monomials.
        size: frequencies of a series, levels of haar, the rank, non-zero weights of sparse, depth of a tree,
            hidden units, monomials of a support; by default 10, 4, 1, 3, 4, 100, 3.
        separation: of two-means, the first weight's mean is plus or minus this.
        sharpness: standard deviation of that weight.
        spread: standard deviation of the others.
        per_batch: one class for a whole batch, as the official code draws it, instead of one per prompt.
        curriculum: training begins with 5 non-zero inputs and 11 rows, and adds one input and two rows every
            `curriculum` steps; 0 shows all from the start.
    """

    names: tuple[Name, ...] = ("dense",)
    alpha: tuple[Positive, ...] = ()
    dim: Count = 20
    rows: Count = 41
    noise: NonNegative = 0.0
    tasks: Count = 128
    size: Count | None = None
    separation: NonNegative = 3.0
    sharpness: Positive = 1e-4
    spread: Positive = 1.0
    per_batch: bool = False
    curriculum: Whole = 0


def training_sampler(c: FunctionConfig, functions: Functions | Mixture) -> Functions | Mixture | Curriculum:
    """Return the sampler for training: a class or mixture, under the curriculum where there is one."""
    return Curriculum(functions, c.curriculum) if c.curriculum else functions


def law(c: FunctionConfig, seed: int = 0) -> Functions | Mixture:
    """Build the class, or the mixture, that a config names.

    Raises:
        UserError: weights that do not fit the names, classes with one input mixed with others, or a dimension for
            low-rank that is not a square.
    """
    if c.alpha and len(c.alpha) != len(c.names):
        raise UserError(f"alpha: {len(c.alpha)} weights for {len(c.names)} classes")
    univariate = [n for n in c.names if n.startswith(("fourier", "haar"))]
    if univariate and len(univariate) < len(c.names):
        raise UserError(f"names: {univariate[0]} has one input, and the others have {c.dim}: no mixture of both")
    if "low-rank" in c.names and math.isqrt(c.dim) ** 2 != c.dim:
        raise UserError(f"dim = {c.dim}: the weights of low-rank are a square matrix, so it must be a square")
    if not c.names:
        raise UserError("names: give at least one function class")
    parts: list[Any] = []
    shares: list[float] = []
    for i, name in enumerate(c.names):
        part = _build(name, c, seed)
        weight = c.alpha[i] if c.alpha else 1.0
        # Flatten a mixture within a mixture.
        members, weights = (part.parts, part.shares) if isinstance(part, Mixture) else ((part,), [1.0])
        parts += members
        shares += [weight * a for a in weights]
    if len(parts) == 1:
        first: Functions = parts[0]
        return first
    return Mixture(parts=tuple(parts), alpha=tuple(shares), per_batch=c.per_batch)


def _build(name: Name, c: FunctionConfig, seed: int) -> Any:
    common: dict[str, Any] = {"dim": c.dim, "rows": c.rows, "noise": c.noise}
    univariate = common | {"dim": 1}
    if name == "two-means":
        std = (c.sharpness, *(c.spread,) * (c.dim - 1))
        means = [(side * c.separation, *(0.0,) * (c.dim - 1)) for side in (1, -1)]
        return Mixture(parts=tuple(Gaussian(**common, mean=m, std=std) for m in means))
    if name in ("fourier-low", "fourier-high"):
        k = c.size or 10
        return Mixture(parts=tuple(series(k, m, name == "fourier-high", **univariate) for m in range(1, k + 1)))
    if name == "monomials":
        return monomials(c.dim, c.size or 3, c.tasks, seed, **{k: v for k, v in common.items() if k != "dim"})
    builders = {
        "dense": lambda: Gaussian(**common),
        "sparse": lambda: Sparse(**common, active=c.size or 3),
        "signs": lambda: Signs(**common),
        "laplace": lambda: Laplace(**common),
        "low-rank": lambda: LowRank(**common, rank=c.size or 1),
        "tree": lambda: Tree(**common, depth=c.size or 4),
        "network": lambda: Network(**common, hidden=c.size or 100),
        "pool": lambda: Pool(**common, tasks=c.tasks, seed=seed),
        "fourier": lambda: Gaussian(**univariate, basis="fourier", size=c.size or 10),
        "haar": lambda: Gaussian(**univariate, basis="haar", size=c.size or 4),
    }
    return builders[name]()


def series(frequencies: int, count: int, high: bool = False, **common: Any) -> Gaussian:
    """A Fourier series of the `count` lowest, or highest, of all frequencies, with the energy of the full series."""
    k = np.repeat(np.arange(1, frequencies + 1), 2)
    active = (k > frequencies - count) if high else (k <= count)
    scale = math.sqrt(frequencies / count)
    return Gaussian(basis="fourier", size=frequencies, std=(scale, *(scale * active).tolist()), **common)


def monomials(dim: int, size: int, count: int, seed: int = 0, **common: Any) -> Mixture:
    """`count` random supports, each of `size` products of two inputs: a finite pool of tasks."""
    pairs = supports(dim, 2)
    rng = np.random.default_rng([seed, count])
    chosen = [tuple(pairs[i] for i in sorted(rng.permutation(len(pairs))[:size])) for _ in range(count)]
    return Mixture(parts=tuple(Gaussian(dim=dim, basis="monomials", supports=s, **common) for s in chosen))


def elsewhere(c: FunctionConfig, seed: int) -> dict[str, Functions | Mixture]:
    """Return classes for out-of-distribution prompts, by name: functions that the pool does not contain."""
    out: dict[str, Functions | Mixture] = {}
    if "pool" in c.names:
        out["endless functions"] = Gaussian(dim=c.dim, rows=c.rows, noise=c.noise)
    if "monomials" in c.names:
        out["other supports"] = law(c, seed + 1)
    return out
