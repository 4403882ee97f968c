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
    """What is learned in context. Several names are a mixture: one of them is drawn for every prompt.

    Args:
        names: dense (linear), sparse, signs, laplace, low-rank, tree, network; pool, a finite set of linear functions;
            two-means, Gaussian weights around one of two means; fourier, fourier-low and fourier-high (series of the
            lowest or highest M frequencies, M uniform), haar; monomials, products of two inputs.
        alpha: weights of the names; equal by default.
        dim: d; fourier and haar have 1.
        rows: of a prompt.
        noise: standard deviation added to targets.
        tasks: functions of a pool, or supports of monomials.
        size: frequencies of a series, levels of haar, the rank, weights of sparse that are not zero, depth of a tree,
            hidden units, monomials of a support; by default 10, 4, 1, 3, 4, 100, 3.
        separation: of two-means, the first weight's mean is plus or minus this.
        sharpness: standard deviation of that weight.
        spread: standard deviation of the others.
        per_batch: one class for a whole batch, as the official code draws it, in place of one a prompt.
        curriculum: training begins with 5 inputs that are not 0 and 11 rows, and gets one and two more every so many
            steps; 0 shows all from the start.
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


def taught(c: FunctionConfig, of: Functions | Mixture) -> Functions | Mixture | Curriculum:
    """What training draws of a class or mixture."""
    return Curriculum(of, c.curriculum) if c.curriculum else of


def law(c: FunctionConfig, seed: int = 0) -> Functions | Mixture:
    """The class, or the mixture, that is meant.

    Raises:
        UserError: weights that do not fit the names, classes of one input beside others, or a dimension without a root.
    """
    if c.alpha and len(c.alpha) != len(c.names):
        raise UserError(f"alpha: {len(c.alpha)} weights for {len(c.names)} classes")
    flat = [n for n in c.names if n.startswith(("fourier", "haar"))]
    if flat and len(flat) < len(c.names):
        raise UserError(f"names: {flat[0]} has one input, and the others have {c.dim}: no mixture of both")
    if "low-rank" in c.names and math.isqrt(c.dim) ** 2 != c.dim:
        raise UserError(f"dim = {c.dim}: the weights of low-rank are a square matrix, so it must be a square")
    if not c.names:
        raise UserError("names: there are none")
    parts: list[Any] = []
    shares: list[float] = []
    for i, name in enumerate(c.names):
        one = _named(name, c, seed)
        weight = c.alpha[i] if c.alpha else 1.0
        # A mixture within a mixture is one mixture.
        inner, own = (one.parts, one.shares) if isinstance(one, Mixture) else ((one,), [1.0])
        parts += inner
        shares += [weight * a for a in own]
    if len(parts) == 1:
        first: Functions = parts[0]
        return first
    return Mixture(parts=tuple(parts), alpha=tuple(shares), per_batch=c.per_batch)


def _named(name: Name, c: FunctionConfig, seed: int) -> Any:
    common: dict[str, Any] = {"dim": c.dim, "rows": c.rows, "noise": c.noise}
    flat = common | {"dim": 1}
    if name == "two-means":
        std = (c.sharpness, *(c.spread,) * (c.dim - 1))
        means = [(side * c.separation, *(0.0,) * (c.dim - 1)) for side in (1, -1)]
        return Mixture(parts=tuple(Gaussian(**common, mean=m, std=std) for m in means))
    if name in ("fourier-low", "fourier-high"):
        k = c.size or 10
        return Mixture(parts=tuple(series(k, m, name == "fourier-high", **flat) for m in range(1, k + 1)))
    if name == "monomials":
        return monomials(c.dim, c.size or 3, c.tasks, seed, **{k: v for k, v in common.items() if k != "dim"})
    plain = {
        "dense": lambda: Gaussian(**common),
        "sparse": lambda: Sparse(**common, active=c.size or 3),
        "signs": lambda: Signs(**common),
        "laplace": lambda: Laplace(**common),
        "low-rank": lambda: LowRank(**common, rank=c.size or 1),
        "tree": lambda: Tree(**common, depth=c.size or 4),
        "network": lambda: Network(**common, hidden=c.size or 100),
        "pool": lambda: Pool(**common, tasks=c.tasks, seed=seed),
        "fourier": lambda: Gaussian(**flat, basis="fourier", size=c.size or 10),
        "haar": lambda: Gaussian(**flat, basis="haar", size=c.size or 4),
    }
    return plain[name]()


def series(frequencies: int, kept: int, high: bool = False, **common: Any) -> Gaussian:
    """A Fourier series of the `kept` lowest, or highest, of so many frequencies, with the energy of the whole."""
    k = np.repeat(np.arange(1, frequencies + 1), 2)
    inside = (k > frequencies - kept) if high else (k <= kept)
    size = math.sqrt(frequencies / kept)
    return Gaussian(basis="fourier", size=frequencies, std=(size, *(size * inside).tolist()), **common)


def monomials(dim: int, size: int, count: int, seed: int = 0, **common: Any) -> Mixture:
    """So many random supports, each of `size` products of two inputs: a finite pool of tasks."""
    pairs = supports(dim, 2)
    rng = np.random.default_rng([seed, count])
    chosen = [tuple(pairs[i] for i in sorted(rng.permutation(len(pairs))[:size])) for _ in range(count)]
    return Mixture(parts=tuple(Gaussian(dim=dim, basis="monomials", supports=s, **common) for s in chosen))


def elsewhere(c: FunctionConfig, seed: int) -> dict[str, Functions | Mixture]:
    """Prompts from outside: of functions the pool does not hold, and of inputs and targets twice as large."""
    out: dict[str, Functions | Mixture] = {}
    if "pool" in c.names:
        out["endless functions"] = Gaussian(dim=c.dim, rows=c.rows, noise=c.noise)
    if "monomials" in c.names:
        out["other supports"] = law(c, seed + 1)
    return out
