"""Meta-training on tasks: a user's small problems as a pool with a leak-proof split and a seeded sampler.

A sampler gives `Tensors` with `x (B, N, d)`, `y (B, N, o)`, `query (B, d)`, `target (B, o)`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.learn import fit as loop
from didact.types import Example, Fit, UserError

Array = NDArray[np.float64]
Units = tuple[Array, Array, Array, Array]
"""What columns are measured in: `x_mean (d,), x_std (d,), y_mean (o,), y_std (o,)`."""


class Sampler(Protocol):
    """Draws tasks, pure in its arguments: a world, or a `Pool` of the user's tasks."""

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw `tasks` tasks."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run a block or, as a decorator, a function on one thread.

    Small matrix products lose by threading: on a busy machine two threads are thirty times slower than one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batches(sampler: Sampler, seed: int, rows: int) -> Callable[[int], Tensors]:
    """Return the `batch_at` of `fit` that draws fresh tasks every step."""
    return lambda step: sampler((seed, step), rows)


def query_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """`1/2 ||target - prediction||^2` of every task, `(B,)`."""
    return 0.5 * (target - prediction).square().sum(-1)


def task_loss(module: nn.Module, batch: Tensors) -> loop.Terms:
    """The loss of in-context learning for `fit`: the mean over tasks of the query's loss."""
    prediction = module(batch["x"], batch["y"], batch["query"])
    return {"query": loop.Term(query_loss(prediction, batch["target"]).sum(), "rows")}


@dataclass(frozen=True)
class Run:
    """One meta-training: the module, its log rows, and its mean loss over the last tenth of the steps."""

    module: nn.Module
    history: loop.History
    training_loss: float


@one_thread()
def meta_train(
    build: Callable[[], nn.Module],
    sampler: Sampler,
    fit: Fit,
    restarts: int = 1,
    quiet: bool = False,
    loss: loop.LossFn = task_loss,
    hooks: Iterable[loop.Hook] = (),
) -> list[Run]:
    """Train `build()` from `restarts` different initial weights on the same draws; best TRAINING loss first.

    Small weights start near a saddle that some seeds do not leave for thousands of steps.

    Raises:
        UserError: `fit` counts epochs, and the sampler draws fresh tasks without end.
    """
    tasks = len(sampler) if isinstance(sampler, Pool) else 0
    if fit.steps is None and not tasks:
        raise UserError("a sampler of fresh tasks has no epochs: give fit.steps")
    steps = fit.total_steps(tasks)
    identity = {"tasks": getattr(sampler, "mark", repr(sampler))}
    runs = []
    for restart in range(restarts):
        with torch.random.fork_rng():
            torch.manual_seed(fit.seed * 1000 + restart)
            module = build()
        history, _ = loop.fit(
            module, batches(sampler, fit.seed, fit.rows), loss, fit, hooks, steps=steps,
            warmup=fit.warmup_count(tasks), name=f"restart-{restart}", identity=identity, quiet=quiet,
        )  # fmt: skip
        last = [row["loss"] for row in history[-max(1, steps // 10) :]]
        runs.append(Run(module, history, float(np.mean(last)) if last else float("nan")))
    return sorted(runs, key=lambda run: run.training_loss)


@dataclass(frozen=True)
class Pool:
    """A user's tasks, drawn with replacement. The context of a task is `context` of its rows, chosen at random.

    A task without a query uses another of its rows as the query, a different one at every draw.

    Args:
        x: one `(n, d)` array per task.
        y: one `(n, o)` array per task.
        query: `(d,)` and target `(o,)` of each task, or None.
        context: N, how many rows a context has.
    """

    x: Sequence[Array]
    y: Sequence[Array]
    query: Sequence[tuple[Array, Array] | None]
    context: int

    @classmethod
    def of(cls, records: Sequence[Example], context: int | None = None) -> Pool:
        """Check and collect records. `context` is by default as large as every task allows.

        Raises:
            UserError: a record is not a table of finite numbers, has another d or o than the first, half a
                query, or too few rows. The message has the record's number, counted from 1.
        """
        if not records:
            raise UserError("tasks: there are no records")
        parsed = [_parse(record, number) for number, record in enumerate(records, 1)]
        first = (parsed[0][0].shape[1], parsed[0][1].shape[1])
        for number, (x, y, _) in enumerate(parsed, 1):
            if (x.shape[1], y.shape[1]) != first:
                raise UserError(
                    f"tasks: record {number}: rows of {x.shape[1]} inputs and {y.shape[1]} targets; record 1 has "
                    f"{first[0]} and {first[1]}, and all tasks must have the same"
                )
        sizes = [len(x) - (q is None) for x, _, q in parsed]
        size = min(sizes) if context is None else context
        if context is not None and context < 1:
            raise UserError(f"context = {context}: must be at least 1")
        for number, available in enumerate(sizes, 1):
            if available < max(size, 1):
                raise UserError(f"tasks: record {number}: {available} rows beside the query; {max(size, 1)} are needed")
        return cls([p[0] for p in parsed], [p[1] for p in parsed], [p[2] for p in parsed], size)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def mark(self) -> str:
        """Hash of all tasks."""
        return hashlib.sha256("".join(self._marks()).encode()).hexdigest()[:16]

    def split(self, share: float) -> tuple[Pool, Pool]:
        """Training and held-out tasks, by a hash of their content: a task that occurs twice stays on one side.

        Raises:
            UserError: one side would have fewer than two tasks.
        """
        marks = self._marks()
        distinct = sorted(set(marks))
        held_out = set(distinct[: round(share * len(distinct))])
        if len(held_out) < 2 or len(distinct) - len(held_out) < 2:
            raise UserError(
                f"tasks: {len(distinct)} different tasks with {share:.0%} held out leave fewer than two on one side"
            )
        sides = [[i for i, m in enumerate(marks) if (m in held_out) == side] for side in (False, True)]
        return self._some(sides[0]), self._some(sides[1])

    def units(self) -> Units:
        """Mean and standard deviation of every column (1 where a column is constant)."""
        x, y = np.concatenate(self.x), np.concatenate(self.y)
        return x.mean(0), _positive(x.std(0)), y.mean(0), _positive(y.std(0))

    def standardized(self, units: Units) -> Pool:
        """Return the tasks in these units."""
        x_mean, x_std, y_mean, y_std = units
        query = [q and ((q[0] - x_mean) / x_std, (q[1] - y_mean) / y_std) for q in self.query]
        return Pool([(v - x_mean) / x_std for v in self.x], [(v - y_mean) / y_std for v in self.y], query, self.context)

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw tasks; if `tasks` is the size of the pool, every task once and in order."""
        rng = np.random.default_rng(list(seed))
        chosen = np.arange(len(self)) if tasks == len(self) else rng.integers(len(self), size=tasks)
        x, y, real, own, query, target = (part[chosen] for part in self._padded)
        order = np.argsort(np.where(real, rng.random(real.shape), np.inf), axis=1)
        index, rows, spare = np.arange(tasks), order[:, : self.context], order[:, min(self.context, x.shape[1] - 1)]
        parts = {
            "x": x[index[:, None], rows],
            "y": y[index[:, None], rows],
            "query": np.where(own, query, x[index, spare]),
            "target": np.where(own, target, y[index, spare]),
        }
        return Tensors({name: torch.from_numpy(v.astype(np.float32)) for name, v in parts.items()})

    @functools.cached_property
    def _padded(self) -> tuple[Any, ...]:
        """`x (T, n, d), y (T, n, o)`, which rows are not padding, which tasks have a query, and those queries."""
        longest = max(len(x) for x in self.x)
        x, y = (np.stack([_padded_to(v, longest) for v in values]) for values in (self.x, self.y))
        real = np.arange(longest) < np.array([len(v) for v in self.x])[:, None]
        own = np.array([[q is not None] for q in self.query])
        none = (np.zeros(x.shape[2]), np.zeros(y.shape[2]))
        query, target = (np.stack([(q or none)[i] for q in self.query]) for i in (0, 1))
        return x, y, real, own, query, target

    def _marks(self) -> list[str]:
        return [hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() for x, y in zip(self.x, self.y, strict=True)]

    def _some(self, index: Sequence[int]) -> Pool:
        return Pool(
            [self.x[i] for i in index], [self.y[i] for i in index], [self.query[i] for i in index], self.context
        )


def sides(
    tasks: Sequence[Example] | Sampler, share: float, context: int | None = None, standardize: bool = False
) -> tuple[Sampler, Sampler, Units | None]:
    """Return the sampler to train on, the one to report on (for a given sampler the same), and the units of both.

    Raises:
        UserError: as `Pool.of`; or options for records together with a sampler.
    """
    if callable(tasks):
        if context is not None or standardize:
            raise UserError("context and standardize are for records, and a sampler was given: leave them out")
        return tasks, tasks, None
    train, held_out = Pool.of(tasks, context).split(share)
    if not standardize:
        return train, held_out, None
    units = train.units()
    return train.standardized(units), held_out.standardized(units), units


def _parse(record: Example, number: int) -> tuple[Array, Array, tuple[Array, Array] | None]:
    prefix = f"tasks: record {number}"
    x, y = numbers(record.x, f"{prefix}: field 'x'"), numbers(record.y, f"{prefix}: field 'y'")
    x, y = (x[:, None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
    if x.ndim != 2 or y.ndim != 2 or not x.size or not y.size:
        raise UserError(f"{prefix}: 'x' must be rows of numbers and 'y' one number (or list of numbers) a row")
    if len(x) != len(y):
        raise UserError(f"{prefix}: {len(x)} rows of 'x' and {len(y)} of 'y'")
    if (record.x_query is None) != (record.y_query is None):
        raise UserError(f"{prefix}: 'x_query' and 'y_query' come together")
    if record.x_query is None:
        return x, y, None
    query = numbers(record.x_query, f"{prefix}: field 'x_query'").reshape(-1)
    target = numbers(record.y_query, f"{prefix}: field 'y_query'").reshape(-1)
    for name, value, width in (("x_query", query, x.shape[1]), ("y_query", target, y.shape[1])):
        if len(value) != width:
            raise UserError(f"{prefix}: '{name}' has {len(value)} numbers, a row has {width}")
    return x, y, (query, target)


def numbers(value: Any, where: str) -> Array:
    """Rows of finite numbers as an array.

    Raises:
        UserError: they are not; the message begins with `where`.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise UserError(f"{where}: rows of different lengths") from None
    if array.dtype.kind not in "iufb":
        raise UserError(f"{where}: must hold numbers only (encode classes one-hot)")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{where}: holds NaN or an infinity; remove the row or correct the number")
    return array


def _positive(std: Array) -> Array:
    return np.where(std > 0, std, 1.0)


def _padded_to(rows: Array, length: int) -> Array:
    return np.pad(rows, ((0, length - len(rows)), (0, 0)))
