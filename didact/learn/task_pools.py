"""Very many classification tasks made of a few labelled data sets: a random linear map of the inputs and a random
assignment of classes to slots, from a pool of fixed size or fresh every time.

    x = A x_bar,  A_ij ~ N(0, 1/d),    slot = rho(class),    so that E[Ax . Ay] = x . y

A batch is a `Tensors` with `x (B, T, d)`, `y (B, T, C)` one-hot slots, `label (B, T)`, `allowed (B, C)`: the slots
that this task uses.

Source: Kirsch et al. 2022, arXiv:2212.04458, section 3.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from didact.data import words
from didact.data.reduction import Reduction
from didact.data.streams import Tensors
from didact.learn import episodes
from didact.learn import fit as loop
from didact.types import Example, UserError

Array = NDArray[np.float64]
TASKS = 2**62  # size of an endless pool
REDRAWS = 10  # attempts to replace rows that repeat within their sequence


@dataclass(frozen=True, eq=False)
class Labelled:
    """One data set: rows `x (n, d)`, their class indices `y (n,)`, and the names of the classes."""

    name: str
    x: Array
    y: NDArray[np.int64]
    classes: tuple[Any, ...]

    def split(self, share: float) -> tuple[Labelled, Labelled]:
        """Split every class into training and held-out rows by a hash of the row, so that copies stay on one side.

        Raises:
            UserError: a class has fewer than two different rows.
        """
        marks = [hashlib.sha256(row.tobytes()).hexdigest() for row in self.x]
        held_out = np.zeros(len(self.x), dtype=bool)
        for c, name in enumerate(self.classes):
            distinct = sorted({marks[i] for i in np.flatnonzero(self.y == c)})
            if len(distinct) < 2:
                raise UserError(f"{self.name}: class {name!r} has one row: two are needed, one of them held out")
            chosen = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
            held_out |= (self.y == c) & np.array([m in chosen for m in marks])
        return self.some(~held_out), self.some(held_out)

    def mapped(self, reduction: Reduction) -> Labelled:
        """Return the data set with its rows reduced."""
        return dataclasses.replace(self, x=reduction(self.x))

    def some(self, rows: NDArray[np.bool_]) -> Labelled:
        """Return the data set with these rows only; the classes keep their indices."""
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows])


def labelled(
    records: Sequence[Example], embed: Callable[[Sequence[str]], Array] | None = None, option: str = "datasets"
) -> list[Labelled]:
    """Group records into data sets: all records of one `task` are one set, however many rows each has.

    Args:
        records: `x` rows of numbers, or texts; `y` their classes.
        embed: maps texts to vectors `(n, d)`.
        option: name of the records' option, for messages.

    Raises:
        UserError: no records, rows and classes that do not fit, NaN, texts without a model, or a set of one class.
    """
    if not records:
        raise UserError(f"{option}: there are no records")
    rows: dict[str, list[Any]] = {}
    for number, record in enumerate(records, 1):
        prefix = f"{option}: record {number}"
        if len(record.x) != len(record.y) or not record.x:
            raise UserError(f"{prefix}: {len(record.x)} rows of 'x' and {len(record.y)} of 'y'")
        if bad := [y for y in record.y if y is None or isinstance(y, float | list | dict)]:
            raise UserError(f"{prefix}: field 'y': {bad[0]!r} is not a class: give a word or a whole number per row")
        texts = [isinstance(x, str) for x in record.x]
        if any(texts) and embed is None:
            raise UserError(f"{prefix}: field 'x' holds texts: give --model, whose hidden states stand for them")
        if any(texts) != all(texts):
            raise UserError(f"{prefix}: field 'x' holds texts and numbers: give only one of them")
        x = record.x if all(texts) else list(episodes.numbers(record.x, f"{prefix}: field 'x'"))
        if not all(texts) and np.ndim(x) != 2:
            raise UserError(f"{prefix}: field 'x': a row must be a list of numbers, all rows of one length")
        rows.setdefault(record.task or "data", []).extend(zip(x, record.y, [number] * len(x), strict=True))
    out = [_data_set(name, examples, embed, option) for name, examples in rows.items()]
    if len({s.x.shape[1] for s in out}) > 1:
        raise UserError(f"{option}: rows of {sorted({s.x.shape[1] for s in out})} numbers: all must have equally many")
    return out


def _data_set(name: str, examples: Sequence[Any], embed: Any, option: str) -> Labelled:
    x, y, numbers = zip(*examples, strict=True)
    if isinstance(x[0], str):
        x = embed(list(x))
    if len(widths := {len(row) for row in x}) > 1:
        first = next(n for row, n in zip(x, numbers, strict=True) if len(row) != len(x[0]))
        raise UserError(f"{option}: record {first}: rows of {sorted(widths)} numbers: all must have equally many")
    y = tuple(map(words.label, y))
    classes = sorted(set(y), key=lambda c: (str(type(c)), c))
    if len(classes) < 2:
        raise UserError(f"{option}: '{name}' has one class, {classes[0]!r}: two are needed")
    index = {c: i for i, c in enumerate(classes)}
    return Labelled(name, np.asarray(x, dtype=np.float64), np.array([index[c] for c in y]), tuple(classes))


@dataclass(frozen=True)
class TaskPool:
    """Draws tasks: data set, classes, A and rho of task k are pure in (seed, k), nothing is stored.

    Args:
        data: the data sets of the tasks. All classes of a task are equally frequent.
        length: T, rows of a sequence.
        slots: C. From a set with more classes each task uses C of them.
        tasks: size of the pool; 0 is endless.
        seed: seed of the tasks.
        bias: share of every batch in which a class always has the same slot.
        natural: share of every batch with unchanged inputs, A = I.
        labels: `true`, or `random`: drawn without regard to x, so that nothing can be learned (a control).
    """

    data: Sequence[Labelled]
    length: int
    slots: int
    tasks: int = 0
    seed: int = 0
    bias: float = 0.0
    natural: float = 0.0
    labels: str = "true"

    def __repr__(self) -> str:
        """Its settings, with a hash in place of the data."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "data"}
        return f"TaskPool({self.mark}, {settings})"

    @functools.cached_property
    def mark(self) -> str:
        """Hash of the data and the settings."""
        digest = hashlib.sha256(repr([getattr(self, f.name) for f in dataclasses.fields(self)[1:]]).encode())
        for labelled_set in self.data:
            digest.update(labelled_set.x.tobytes() + labelled_set.y.tobytes())
        return digest.hexdigest()[:16]

    def but(self, **changes: Any) -> TaskPool:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def chance(self) -> float:
        """Accuracy of random guessing, mean over the data sets."""
        return float(np.mean([1 / min(self.slots, len(s.classes)) for s in self.data]))

    def task(self, k: int, biased: bool = False, natural: bool = False) -> tuple[int, Array, Array]:
        """Return task k: index of the data set, A `(d, d)`, and the class of every slot `(C,)`, -1 for an empty one."""
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, k]))
        index = int(rng.integers(len(self.data)))
        d, classes = self.data[0].x.shape[1], len(self.data[index].classes)
        a = np.eye(d) if natural else rng.standard_normal((d, d)) / np.sqrt(d)
        if biased:  # a class always has the same slot: its index modulo the number of slots
            rounds = -(-classes // self.slots)
            slots = np.arange(self.slots) + self.slots * rng.integers(rounds, size=self.slots)
            slots = np.where(slots < classes, slots, slots % self.slots)
            return index, a, np.where(slots < classes, slots, -1)
        chosen = rng.permutation(classes)[: self.slots]
        filled = np.concatenate([chosen, np.full(self.slots - len(chosen), -1)])
        return index, a, rng.permutation(filled)

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw a batch."""
        rng = np.random.default_rng(list(seed))
        numbers = rng.integers(self.tasks or TASKS, size=tasks)
        biased, natural = round(self.bias * tasks), round(self.natural * tasks)
        drawn = [self.task(int(k), i < biased, i >= tasks - natural) for i, k in enumerate(numbers)]
        sets = np.array([w for w, _, _ in drawn])
        a, classes = (np.stack([d[i] for d in drawn]) for i in (1, 2))
        # Slots in random order, the empty ones last: a uniform number then picks a filled slot.
        order = np.argsort(np.where(classes >= 0, rng.random(classes.shape), 2.0), axis=1)
        filled = (classes >= 0).sum(1)
        index = np.arange(tasks)[:, None]
        slot = order[index, (rng.random((tasks, self.length)) * filled[:, None]).astype(int)]
        first, count = self._places
        drawn_classes = classes[index, slot]
        start, size = first[sets[:, None], drawn_classes], count[sets[:, None], drawn_classes]
        row = start + (rng.random(drawn_classes.shape) * size).astype(int)
        for _ in range(REDRAWS):  # a row occurs once in a sequence, if there are enough rows
            repeats = _repeated(row)
            if not repeats.any():
                break
            row[repeats] = (start + (rng.random(drawn_classes.shape) * size).astype(int))[repeats]
        x = self._rows[row] @ a.transpose(0, 2, 1)
        if self.labels == "random":
            slot = order[index, (rng.random((tasks, self.length)) * filled[:, None]).astype(int)]
        label = torch.from_numpy(slot)
        return Tensors(
            {
                "x": torch.from_numpy(x.astype(np.float32)),
                "y": F.one_hot(label, self.slots).float(),
                "label": label,
                "allowed": torch.from_numpy(classes >= 0),
            }
        )

    @functools.cached_property
    def _rows(self) -> Array:
        return np.concatenate([s.x[np.argsort(s.y, kind="stable")] for s in self.data])

    @functools.cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start of each set's classes in `_rows`, and their numbers of rows, `(sets, classes)`."""
        classes = max(len(s.classes) for s in self.data)
        count = np.stack([np.bincount(s.y, minlength=classes) for s in self.data])
        return (count.cumsum().reshape(count.shape) - count), count


def _repeated(row: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the entries of `(B, T)` that repeat an earlier one of their line."""
    order = np.argsort(row, axis=1, kind="stable")
    line = np.take_along_axis(row, order, 1)
    out = np.zeros(row.shape, dtype=bool)
    np.put_along_axis(out, order[:, 1:], line[:, 1:] == line[:, :-1], 1)
    return out


@dataclass(frozen=True)
class Curriculum:
    """A pool whose bias falls linearly to 0 over `until` steps; the last number of a batch's seed is its step."""

    pool: TaskPool
    until: float

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw the batch of a step."""
        remaining = max(0.0, 1 - seed[-1] / self.until)
        return self.pool.but(bias=self.pool.bias * remaining)(seed, tasks)


def law(pool: TaskPool, bias: float, natural: float, until: float = 0) -> episodes.Sampler:
    """Return the sampler for training: the pool with a share of biased and one of unmapped sequences; the bias ends
    at step `until`, or never (0)."""
    mixed = pool.but(bias=bias, natural=natural)
    return Curriculum(mixed, until) if until else mixed


def class_logits(module: nn.Module, batch: Tensors | Mapping[str, Any]) -> torch.Tensor:
    """Logits `(B, T, C)` of every row's slot; those of slots that a task does not use are minus infinity.

    The rows of a batch are already reduced, as `SequenceLearner.inner` expects them.
    """
    learner: Any = module
    out: torch.Tensor = learner.inner(batch["x"], batch["y"])
    return out.masked_fill(~batch["allowed"][:, None], -torch.inf)


def class_loss(module: nn.Module, batch: Tensors) -> loop.Terms:
    """Cross-entropy of every row given those before it: the mean over ALL positions, and over tasks."""
    logits = class_logits(module, batch)
    nll = F.cross_entropy(logits.flatten(0, 1), batch["label"].flatten(), reduction="sum")
    return {"nll": loop.Term(nll / batch["label"].shape[1], "rows")}
