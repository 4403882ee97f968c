"""In-context regression tasks with a known distribution: linear maps of random inputs, and sine waves.

A batch of tasks is a `Tensors` with `x (B, N, d)`, `y (B, N, o)`, `query (B, d)`, `target (B, o)`.
A world is a pure function `world(seed, tasks)`, so it can feed `fit` step by step.

Source: von Oswald et al. 2023, arXiv:2212.07677, section 3 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from didact.data.streams import Tensors
from didact.types import Example

Inputs = Literal["uniform", "normal", "exponential", "laplace"]
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Tasks `y = w x + noise` with a new `w (o, d)` from N(0, scale^2) for every task.

    Args:
        dim: d, number of inputs.
        rows: N, number of rows in the context.
        outputs: o, number of outputs.
        inputs: how each coordinate of x is drawn.
        half_width: `a`. Uniform inputs lie in (-a, a): `a` is the HALF-width (the official code's
            `input_range` is the whole width 2a). For the others it is the standard deviation (normal)
            or the scale (exponential, laplace).
        scale: standard deviation of w.
        noise: standard deviation of the noise on the context's targets.
        distractors: number of context targets replaced by N(0, 1) draws.
        normalize: divide context and query by the Frobenius norm of the context's x, then multiply
            by `half_width`; the paper does so for inputs that are not uniform.
    """

    dim: int = 10
    rows: int = 10
    outputs: int = 1
    inputs: Inputs = "uniform"
    half_width: float = 0.5
    scale: float = 1.0
    noise: float = 0.0
    distractors: int = 0
    normalize: bool = False

    def __call__(self, seed: int | Sequence[int], tasks: int) -> Tensors:
        """Draw tasks."""
        rng = np.random.default_rng(seed)
        w = rng.standard_normal((tasks, self.outputs, self.dim)) * self.scale
        x = _draw(rng, self.inputs, (tasks, self.rows + 1, self.dim))
        if self.normalize:
            x = x / np.linalg.norm(x[:, :-1], axis=(1, 2), keepdims=True)
        x = x * self.half_width
        y = x @ w.transpose(0, 2, 1)
        context = y[:, :-1] + self.noise * rng.standard_normal((tasks, self.rows, self.outputs))
        return _batch(x, _distracted(rng, context, self.distractors), y[:, -1])

    def moments(self) -> tuple[float, float]:
        """Variance and fourth moment of one coordinate of x, for inputs of mean zero.

        Raises:
            ValueError: the inputs have no mean of zero, or are normalised.
        """
        if self.inputs == "exponential" or self.normalize:
            raise ValueError("moments are known for uniform, normal and laplace inputs that are not normalised")
        a = self.half_width
        return {"uniform": (a**2 / 3, a**4 / 5), "normal": (a**2, 3 * a**4), "laplace": (2 * a**2, 24 * a**4)}[
            self.inputs
        ]


@dataclass(frozen=True, kw_only=True)
class Sine:
    """Tasks `y = A sin(x + p)` with A ~ U(0.1, 0.5), p ~ U(0, pi), x ~ U(-a, a): linear in no fixed x.

    Args:
        rows: N, number of rows in the context.
        half_width: `a`, the half-width of the inputs.
        distractors: number of context targets replaced by N(0, 1) draws.
    """

    rows: int = 10
    half_width: float = 5.0
    distractors: int = 0

    def __call__(self, seed: int | Sequence[int], tasks: int) -> Tensors:
        """Draw tasks."""
        rng = np.random.default_rng(seed)
        amplitude = rng.uniform(0.1, 0.5, (tasks, 1, 1))
        phase = rng.uniform(0, math.pi, (tasks, 1, 1))
        x = rng.uniform(-self.half_width, self.half_width, (tasks, self.rows + 1, 1))
        y = amplitude * np.sin(x + phase)
        return _batch(x, _distracted(rng, y[:, :-1], self.distractors), y[:, -1])


def records(tasks: Tensors) -> list[Example]:
    """The tasks as user-facing records; with one output, `y` holds plain numbers."""
    x, y = tasks["x"].tolist(), tasks["y"].tolist()
    query, target = tasks["query"].tolist(), tasks["target"].tolist()
    if tasks["y"].shape[-1] == 1:
        y, target = [[v[0] for v in rows] for rows in y], [v[0] for v in target]
    return [
        Example(x=a, y=b, x_query=c, y_query=d, task=str(i))
        for i, (a, b, c, d) in enumerate(zip(x, y, query, target, strict=True))
    ]


def _draw(rng: np.random.Generator, inputs: Inputs, shape: tuple[int, ...]) -> Array:
    if inputs == "uniform":
        return rng.uniform(-1, 1, shape)
    if inputs == "normal":
        return rng.standard_normal(shape)
    return rng.exponential(size=shape) if inputs == "exponential" else rng.laplace(size=shape)


def _distracted(rng: np.random.Generator, y: Array, count: int) -> Array:
    if not count:
        return y
    replaced = rng.permuted(np.arange(y.shape[1]) < count * np.ones((len(y), 1)), axis=1)
    return np.where(replaced[..., None], rng.standard_normal(y.shape), y)


def _batch(x: Array, y: Array, target: Array) -> Tensors:
    parts = {"x": x[:, :-1], "y": y, "query": x[:, -1], "target": target}
    return Tensors({k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for k, v in parts.items()})
