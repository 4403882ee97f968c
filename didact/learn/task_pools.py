"""Very many classification tasks made of a few labelled data sets: a random linear map of the inputs and a random
assignment of classes to slots, drawn from a pool of so many tasks or anew every time.

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
TASKS = 2**62  # of a pool without end
REDRAWS = 10  # of rows that stand in their sequence already


@dataclass(frozen=True, eq=False)
class Labelled:
    """One data set: rows `x (n, d)`, their class numbers `y (n,)`, what the classes are called."""

    name: str
    x: Array
    y: NDArray[np.int64]
    classes: tuple[Any, ...]

    def split(self, share: float) -> tuple[Labelled, Labelled]:
        """Rows to train on and rows held out, of every class, by a hash of the row: copies stay on one side.

        Raises:
            UserError: a class has fewer than two different rows.
        """
        marks = [hashlib.sha256(row.tobytes()).hexdigest() for row in self.x]
        held = np.zeros(len(self.x), dtype=bool)
        for c, called in enumerate(self.classes):
            distinct = sorted({marks[i] for i in np.flatnonzero(self.y == c)})
            if len(distinct) < 2:
                raise UserError(f"{self.name}: class {called!r} has one row: two are needed, one of them held out")
            out = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
            held |= (self.y == c) & np.array([m in out for m in marks])
        return self.some(~held), self.some(held)

    def mapped(self, how: Reduction) -> Labelled:
        """The same rows reduced."""
        return dataclasses.replace(self, x=how(self.x))

    def some(self, rows: NDArray[np.bool_]) -> Labelled:
        """These rows; the classes keep their numbers."""
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows])


def labelled(
    records: Sequence[Example], embed: Callable[[Sequence[str]], Array] | None = None, what: str = "datasets"
) -> list[Labelled]:
    """Records as data sets: those of one `task` are one set, whether they have a row or a thousand.

    Args:
        records: `x` rows of numbers, or texts; `y` a class each.
        embed: texts as vectors `(n, d)`.
        what: what the records are called in messages.

    Raises:
        UserError: no records, rows and classes that do not fit, NaN, texts without a model, or a set of one class.
    """
    if not records:
        raise UserError(f"{what}: there are no records")
    rows: dict[str, list[Any]] = {}
    for number, record in enumerate(records, 1):
        where = f"{what}: record {number}"
        if len(record.x) != len(record.y) or not record.x:
            raise UserError(f"{where}: {len(record.x)} rows of 'x' and {len(record.y)} of 'y'")
        if bad := [y for y in record.y if y is None or isinstance(y, float | list | dict)]:
            raise UserError(f"{where}: field 'y': {bad[0]!r} is no class: give a word or a whole number a row")
        texts = [isinstance(x, str) for x in record.x]
        if any(texts) and embed is None:
            raise UserError(f"{where}: field 'x' holds texts: give --model, whose hidden states stand for them")
        if any(texts) != all(texts):
            raise UserError(f"{where}: field 'x' holds texts and numbers: one or the other")
        x = record.x if all(texts) else list(episodes.numbers(record.x, f"{where}: field 'x'"))
        if not all(texts) and np.ndim(x) != 2:
            raise UserError(f"{where}: field 'x': a row must be a list of numbers, all rows of one length")
        rows.setdefault(record.task or "data", []).extend(zip(x, record.y, [number] * len(x), strict=True))
    out = [_set(name, given, embed, what) for name, given in rows.items()]
    if len({s.x.shape[1] for s in out}) > 1:
        raise UserError(f"{what}: rows of {sorted({s.x.shape[1] for s in out})} numbers: all must have as many")
    return out


def _set(name: str, given: Sequence[Any], embed: Any, what: str) -> Labelled:
    x, y, numbers = zip(*given, strict=True)
    if isinstance(x[0], str):
        x = embed(list(x))
    if len(wide := {len(row) for row in x}) > 1:
        first = next(n for row, n in zip(x, numbers, strict=True) if len(row) != len(x[0]))
        raise UserError(f"{what}: record {first}: rows of {sorted(wide)} numbers: all must have as many")
    y = tuple(map(words.label, y))
    classes = sorted(set(y), key=lambda c: (str(type(c)), c))
    if len(classes) < 2:
        raise UserError(f"{what}: '{name}' has one class, {classes[0]!r}: two are needed")
    index = {c: i for i, c in enumerate(classes)}
    return Labelled(name, np.asarray(x, dtype=np.float64), np.array([index[c] for c in y]), tuple(classes))


@dataclass(frozen=True)
class TaskPool:
    """Draws tasks: data set, classes, A and rho of task k are pure in (seed, k), nothing is stored.

    Args:
        data: what tasks are made of. Every class of a task comes as often as another.
        length: T, rows of a sequence.
        slots: C. A set of more classes gives each task so many of them.
        tasks: how many there are; 0 has no end.
        seed: of the tasks.
        bias: share of every batch whose classes have always the same slots.
        natural: share of every batch whose inputs are as they are, A = I.
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
        """What it draws; the data by their hash."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "data"}
        return f"TaskPool({self.mark}, {told})"

    @functools.cached_property
    def mark(self) -> str:
        """Hash of the data and of what is drawn from them."""
        digest = hashlib.sha256(repr([getattr(self, f.name) for f in dataclasses.fields(self)[1:]]).encode())
        for one in self.data:
            digest.update(one.x.tobytes() + one.y.tobytes())
        return digest.hexdigest()[:16]

    def but(self, **changes: Any) -> TaskPool:
        """The same with changes."""
        return dataclasses.replace(self, **changes)

    @property
    def chance(self) -> float:
        """What guessing is right in, over the data sets."""
        return float(np.mean([1 / min(self.slots, len(s.classes)) for s in self.data]))

    def task(self, k: int, biased: bool = False, natural: bool = False) -> tuple[int, Array, Array]:
        """Data set, A `(d, d)`, and the class of every slot `(C,)`, -1 where a slot stays empty, of task k."""
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, k]))
        which = int(rng.integers(len(self.data)))
        d, classes = self.data[0].x.shape[1], len(self.data[which].classes)
        a = np.eye(d) if natural else rng.standard_normal((d, d)) / np.sqrt(d)
        if biased:  # a class has one slot for ever: its number, counted round
            rounds = -(-classes // self.slots)
            slots = np.arange(self.slots) + self.slots * rng.integers(rounds, size=self.slots)
            slots = np.where(slots < classes, slots, slots % self.slots)
            return which, a, np.where(slots < classes, slots, -1)
        chosen = rng.permutation(classes)[: self.slots]
        filled = np.concatenate([chosen, np.full(self.slots - len(chosen), -1)])
        return which, a, rng.permutation(filled)

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw a batch."""
        rng = np.random.default_rng(list(seed))
        numbers = rng.integers(self.tasks or TASKS, size=tasks)
        biased, natural = round(self.bias * tasks), round(self.natural * tasks)
        drawn = [self.task(int(k), i < biased, i >= tasks - natural) for i, k in enumerate(numbers)]
        which = np.array([w for w, _, _ in drawn])
        a, classes = (np.stack([d[i] for d in drawn]) for i in (1, 2))
        # Slots in random order, the empty ones last: a uniform number then picks one that is used.
        order = np.argsort(np.where(classes >= 0, rng.random(classes.shape), 2.0), axis=1)
        used = (classes >= 0).sum(1)
        each = np.arange(tasks)[:, None]
        slot = order[each, (rng.random((tasks, self.length)) * used[:, None]).astype(int)]
        first, count = self._places
        of = classes[each, slot]
        start, size = first[which[:, None], of], count[which[:, None], of]
        row = start + (rng.random(of.shape) * size).astype(int)
        for _ in range(REDRAWS):  # a row stands in a sequence once, where there are enough
            again = _repeated(row)
            if not again.any():
                break
            row[again] = (start + (rng.random(of.shape) * size).astype(int))[again]
        x = self._rows[row] @ a.transpose(0, 2, 1)
        if self.labels == "random":
            slot = order[each, (rng.random((tasks, self.length)) * used[:, None]).astype(int)]
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
        """Where the rows of each set's classes begin in `_rows`, and how many they are, `(sets, classes)`."""
        most = max(len(s.classes) for s in self.data)
        count = np.stack([np.bincount(s.y, minlength=most) for s in self.data])
        return (count.cumsum().reshape(count.shape) - count), count


def _repeated(row: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries of `(B, T)` stood in their line before."""
    order = np.argsort(row, axis=1, kind="stable")
    line = np.take_along_axis(row, order, 1)
    out = np.zeros(row.shape, dtype=bool)
    np.put_along_axis(out, order[:, 1:], line[:, 1:] == line[:, :-1], 1)
    return out


@dataclass(frozen=True)
class Curriculum:
    """A pool whose bias falls linearly to 0 over the first `until` steps: a batch's seed ends with its step."""

    pool: TaskPool
    until: float

    def __call__(self, seed: Sequence[int], tasks: int) -> Tensors:
        """Draw a batch of that step."""
        left = max(0.0, 1 - seed[-1] / self.until)
        return self.pool.but(bias=self.pool.bias * left)(seed, tasks)


def law(pool: TaskPool, bias: float, natural: float, until: float = 0) -> episodes.Sampler:
    """What is trained on: the pool with a share of biased and one of unmapped sequences; the bias ends at step `until`,
    or never (0)."""
    unlike = pool.but(bias=bias, natural=natural)
    return Curriculum(unlike, until) if until else unlike


def class_logits(module: nn.Module, batch: Tensors | Mapping[str, Any]) -> torch.Tensor:
    """Logits `(B, T, C)` of every row's slot; those of slots that a task does not use are minus infinity.

    The rows of a batch are reduced already, as `SequenceLearner.inner` takes them.
    """
    learner: Any = module
    out: torch.Tensor = learner.inner(batch["x"], batch["y"])
    return out.masked_fill(~batch["allowed"][:, None], -torch.inf)


def class_loss(module: nn.Module, batch: Tensors) -> loop.Terms:
    """Cross-entropy of every row given those before it: the mean over ALL positions, and over tasks."""
    logits = class_logits(module, batch)
    nll = F.cross_entropy(logits.flatten(0, 1), batch["label"].flatten(), reduction="sum")
    return {"nll": loop.Term(nll / batch["label"].shape[1], "rows")}
