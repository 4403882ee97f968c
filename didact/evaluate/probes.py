"""Probes: small models that read something off frozen vectors, beside the controls that say what that is worth.

A probe that finds labels in hidden states may have found them there or computed them itself. So each stands beside a
control task (labels drawn anew for every word, which a probe can only learn by heart), an untrained copy of the model,
and the commonest label. `train` fits any module with any loss, many side by side in one pass over the vectors;
`examine` is the whole study for labels of single vectors.

Source: Hewitt & Liang 2019, arXiv:1909.03368 (control tasks, selectivity).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from didact.bounds import BelowOne, Count, NonNegative, Positive
from didact.evaluate import statistics
from didact.types import UserError

NONE = -1  # a vector without a label
Read = Callable[[Tensor], Tensor]
"""Vectors `(n, d)` of these numbers `(n,)`: a store's `take` at a layer, or a tensor's `__getitem__`."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a probe is trained: Adam, the rate cut to a tenth after every epoch that is no better on held-out records.

    Args:
        lr: rate.
        epochs: passes at most.
        rows: records or vectors a step.
        patience: epochs without a better one after which it stops; the best is kept.
        weight_decay: decoupled, of matrices.
    """

    lr: Positive = 1e-3
    epochs: Count = 20
    rows: Count = 32
    patience: Count = 5
    weight_decay: NonNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Training):
    """A classifier of single vectors, standardised by the training vectors, and how it is trained.

    Args:
        kind: linear, or a perceptron with one or two hidden layers (256, and 1024).
        lr: rate.
        epochs: passes at most.
        rows: vectors a step.
        patience: epochs without a better one after which it stops; the best is kept.
        weight_decay: decoupled, of matrices.
        test: share of the records that probes are scored on.
        valid: share of the others that the best epoch is chosen on.
    """

    kind: Literal["linear", "mlp2", "mlp3"] = "linear"
    lr: Positive = 1e-2
    rows: Count = 256
    test: BelowOne = 0.25
    valid: BelowOne = 0.15


class Parts(NamedTuple):
    """Numbers of the vectors a probe is trained on, chosen on and scored on."""

    train: Tensor
    valid: Tensor
    test: Tensor


# --- training --------------------------------------------------------------------------------


def train(
    probes: Mapping[str, nn.Module],
    losses: Callable[[Tensor], Mapping[str, Tensor]],
    parts: Parts,
    how: Training,
    seed: int = 0,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> dict[str, list[float]]:
    """Train probes side by side in place, each as if it were alone; each ends as it was at its best epoch.

    Args:
        probes: by name.
        losses: the mean loss of each probe over records with these numbers `(n,)`.
        parts: what to train and to choose the epoch on.
        how: rate, epochs, patience.
        seed: of the order.
        penalty: added to the training loss of each probe, not to that which chooses.

    Returns:
        Of each probe the loss on `parts.valid` after every epoch.
    """
    groups = [{"params": list(p.parameters()), "lr": how.lr, "name": n} for n, p in probes.items()]
    optimizer = torch.optim.AdamW(groups, lr=how.lr, weight_decay=how.weight_decay)
    best = {name: (math.inf, copy.deepcopy(probe.state_dict())) for name, probe in probes.items()}
    history: dict[str, list[float]] = {name: [] for name in probes}
    order = torch.Generator().manual_seed(seed)
    going = set(probes)
    for _ in range(how.epochs):
        for probe in probes.values():
            probe.train()
        shuffled = parts.train[torch.randperm(len(parts.train), generator=order)]
        for index in shuffled.tensor_split(math.ceil(len(shuffled) / how.rows)):  # no last step of one
            found = losses(index)
            extra = [penalty(probes[name]) for name in going] if penalty else []
            optimizer.zero_grad(set_to_none=True)
            torch.stack([*(found[name] for name in going), *extra]).sum().backward()
            optimizer.step()
        for name, value in _mean_losses(probes, losses, parts.valid, how.rows).items():
            if name not in going:
                continue
            history[name].append(value)
            group = next(g for g in optimizer.param_groups if g["name"] == name)
            if value < best[name][0]:
                best[name] = value, copy.deepcopy(probes[name].state_dict())
            else:
                group["lr"] *= 0.1
            if len(history[name]) - 1 - int(np.argmin(history[name])) >= how.patience:
                going.remove(name)
        if not going:
            break
    for name, probe in probes.items():
        probe.load_state_dict(best[name][1])
        probe.eval()
    return history


@torch.no_grad()
def _mean_losses(
    probes: Mapping[str, nn.Module], losses: Callable[[Tensor], Mapping[str, Tensor]], index: Tensor, rows: int
) -> dict[str, float]:
    for probe in probes.values():
        probe.eval()
    total = dict.fromkeys(probes, 0.0)
    for some in index.split(rows):
        for name, value in losses(some).items():
            total[name] += float(value) * len(some) / len(index)
    return total


# --- labels of single vectors ----------------------------------------------------------------


class Classifier(nn.Module):
    """`kind` of probe from `d` numbers, standardised, to `classes`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, kind: str, vectors: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("scale", vectors.std(0).clamp_min(1e-6) if len(vectors) > 1 else torch.ones(()))
        widths = [vectors.shape[1], *{"linear": (), "mlp2": (256,), "mlp3": (256, 1024)}[kind]]
        layers: list[nn.Module] = []
        for wide, out in itertools.pairwise(widths):
            layers += [nn.Linear(wide, out), nn.ReLU(), nn.BatchNorm1d(out)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores `(n, classes)`."""
        return self.layers((vectors - self.mean) / self.scale)


def classify(
    read: Read, tasks: Mapping[str, Tensor], parts: Parts, config: ProbeConfig, seed: int = 0
) -> dict[str, Tensor]:
    """Train one probe for each task on the same vectors, in one pass an epoch; what each says of `parts.test` `(n,)`.

    Args:
        read: the vectors.
        tasks: labels `(N,)` from 0 on, `NONE` where there is none.
        parts: which vectors serve for what.
        config: kind of probe and training.
        seed: of weights and order.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        some = read(parts.train[torch.randperm(len(parts.train))[:4096]])
        classes = {name: int(labels.max()) + 1 for name, labels in tasks.items()}
        probes = {name: Classifier(config.kind, some, max(n, 2)) for name, n in classes.items()}

    def losses(index: Tensor) -> dict[str, Tensor]:
        vectors = read(index)
        return {
            name: nn.functional.cross_entropy(probe(vectors), tasks[name][index], ignore_index=NONE, reduction="sum")
            / (tasks[name][index] != NONE).sum().clamp_min(1)
            for name, probe in probes.items()
        }

    train(probes, losses, parts, config, seed)
    with torch.no_grad():
        read_once = [{n: p(v).argmax(1) for n, p in probes.items()} for v in map(read, parts.test.split(4096))]
    return {name: torch.cat([made[name] for made in read_once]) for name in probes}


def control(labels: Tensor, types: Sequence[Hashable], seed: int = 0) -> Tensor:
    """The control task: every type (word) gets a label of its own, drawn from those that the vectors have."""
    draw = np.random.default_rng([seed, 17])
    known = labels[labels != NONE].numpy()
    drawn: dict[Hashable, int] = {}
    for kind in types:
        if kind not in drawn:
            drawn[kind] = int(known[draw.integers(len(known))])
    made = torch.tensor([drawn[kind] for kind in types])
    return torch.where(labels == NONE, NONE, made)


def split(groups: Sequence[Hashable], test: float, valid: float, seed: int = 0) -> Parts:
    """Vectors to train on, to choose on and to score, no group (a record, or several alike) in two parts.

    Raises:
        UserError: there are too few groups for three parts.
    """
    known = list(dict.fromkeys(groups))
    if len(known) < 3:
        raise UserError(f"{len(known)} records: a probe takes three at least, to train on, to choose on and to score")
    order = np.random.default_rng([seed, 18]).permutation(len(known))
    last = max(1, round(test * len(known)))
    chosen = max(1, round(valid * (len(known) - last)))
    part = {known[i]: 2 if n < last else 1 if n < last + chosen else 0 for n, i in enumerate(order)}
    of = np.array([part[group] for group in groups])
    return Parts(*(torch.from_numpy(np.flatnonzero(of == n)) for n in range(3)))


def examine(
    reads: Mapping[str, Mapping[int | str, Read]],
    labels: Tensor,
    types: Sequence[Hashable],
    groups: Sequence[Hashable],
    config: ProbeConfig = ProbeConfig(),
    seed: int = 0,
) -> dict[str, Any]:
    """Probe the same labels at every layer of every model, each beside its control task.

    Args:
        reads: `{"trained": {layer: vectors}, "untrained": {...}}`; the first model is the one examined.
        labels: `(N,)`, from 0 on; `NONE` where there is none.
        types: of every vector the word it stands for, by which the control task labels it.
        groups: of every vector the record it is of: parts and intervals keep records whole.
        config: the probe.
        seed: of the split, the control's labels and the probes.

    Returns:
        `{"majority": share, "models": {model: {layer: {"accuracy", "control", "selectivity" (accuracy less control),
        "gain" (accuracy less that of the last model at this layer)}}}}`, each `{"estimate", "low", "high"}`.

    Raises:
        UserError: too few records, or fewer than two labels.
    """
    if len(labels[labels != NONE].unique()) < 2:
        raise UserError("labels: a probe needs two different labels at least")
    there = labels != NONE
    parts = Parts(*(part[there[part]] for part in split(groups, config.test, config.valid, seed)))
    tasks = {"accuracy": labels, "control": control(labels, types, seed)}
    right: dict[str, dict[int | str, dict[str, Any]]] = {}
    for model, layers in reads.items():
        right[model] = {}
        for layer, read in layers.items():
            said = classify(read, tasks, parts, config, seed)
            right[model][layer] = {n: (said[n] == tasks[n][parts.test]).double().numpy() for n in tasks}
    units = [str(groups[i]) for i in parts.test.tolist()]
    last = right[list(reads)[-1]]
    commonest = int(labels[parts.train].mode().values)
    out: dict[str, Any] = {
        "n": len(units),
        "records": len(set(units)),
        "majority": told(statistics.record_interval((labels[parts.test] == commonest).double().numpy(), units)),
        "models": {},
    }
    for model, layers_ in right.items():
        out["models"][model] = {}
        for layer, r in layers_.items():
            found = {name: told(statistics.record_interval(r[name], units)) for name in tasks}
            found["selectivity"] = told(statistics.record_difference(r["accuracy"], r["control"], units)[0])
            if last is not layers_ and layer in last:
                gap = statistics.record_difference(r["accuracy"], last[layer]["accuracy"], units)[0]
                found["gain"] = told(gap)
            out["models"][model][layer] = found
    return out


def told(interval: statistics.Interval) -> dict[str, float]:
    """An interval as findings have it."""
    return interval._asdict()
