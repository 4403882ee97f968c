"""Probes: small models trained on frozen vectors, with the controls that show what their accuracy is worth.

A probe that predicts labels from hidden states may have found them there or computed them itself. So each is compared
with a control task (random labels per word, which a probe can only memorise), an untrained copy of the model, and the
majority label. `train` fits any module with any loss, many side by side in one pass over the vectors; `examine` is the
whole study for labels of single vectors.

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
"""Maps indices `(n,)` to vectors `(n, d)`: a store's `take` at a layer, or a tensor's `__getitem__`."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a probe is trained: AdamW, the rate cut to a tenth after every epoch that is no better on held-out records.

    Args:
        lr: learning rate.
        epochs: most passes over the data.
        rows: records or vectors per step.
        patience: epochs without improvement after which training stops; the best epoch is kept.
        weight_decay: decoupled weight decay.
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
        lr: learning rate.
        epochs: most passes over the data.
        rows: vectors per step.
        patience: epochs without improvement after which training stops; the best epoch is kept.
        weight_decay: decoupled weight decay.
        test: share of the records that probes are scored on.
        valid: share of the others that the best epoch is chosen on.
    """

    kind: Literal["linear", "mlp2", "mlp3"] = "linear"
    lr: Positive = 1e-2
    rows: Count = 256
    test: BelowOne = 0.25
    valid: BelowOne = 0.15


class Parts(NamedTuple):
    """Indices of the vectors to train on, to choose the epoch on and to score on."""

    train: Tensor
    valid: Tensor
    test: Tensor


# --- training --------------------------------------------------------------------------------


def train(
    probes: Mapping[str, nn.Module],
    losses: Callable[[Tensor], Mapping[str, Tensor]],
    parts: Parts,
    config: Training,
    seed: int = 0,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> dict[str, list[float]]:
    """Train probes side by side in place, each as if it were alone; each ends with the weights of its best epoch.

    Args:
        probes: by name.
        losses: the mean loss of each probe over the records at indices `(n,)`.
        parts: what to train and to choose the epoch on.
        config: learning rate, epochs, patience.
        seed: of the order.
        penalty: added to the training loss of each probe, not to the validation loss.

    Returns:
        The loss of each probe on `parts.valid` after every epoch.
    """
    groups = [{"params": list(p.parameters()), "lr": config.lr, "name": n} for n, p in probes.items()]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    best = {name: (math.inf, copy.deepcopy(probe.state_dict())) for name, probe in probes.items()}
    history: dict[str, list[float]] = {name: [] for name in probes}
    order = torch.Generator().manual_seed(seed)
    active = set(probes)
    for _ in range(config.epochs):
        for probe in probes.values():
            probe.train()
        shuffled = parts.train[torch.randperm(len(parts.train), generator=order)]
        for index in shuffled.tensor_split(math.ceil(len(shuffled) / config.rows)):  # no last batch of one
            step_losses = losses(index)
            penalties = [penalty(probes[name]) for name in active] if penalty else []
            optimizer.zero_grad(set_to_none=True)
            torch.stack([*(step_losses[name] for name in active), *penalties]).sum().backward()
            optimizer.step()
        for name, value in _mean_losses(probes, losses, parts.valid, config.rows).items():
            if name not in active:
                continue
            history[name].append(value)
            group = next(g for g in optimizer.param_groups if g["name"] == name)
            if value < best[name][0]:
                best[name] = value, copy.deepcopy(probes[name].state_dict())
            else:
                group["lr"] *= 0.1
            if len(history[name]) - 1 - int(np.argmin(history[name])) >= config.patience:
                active.remove(name)
        if not active:
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
    for batch in index.split(rows):
        for name, value in losses(batch).items():
            total[name] += float(value) * len(batch) / len(index)
    return total


# --- labels of single vectors ----------------------------------------------------------------


class Classifier(nn.Module):
    """A probe of this `kind` from `d` standardised numbers to `classes`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, kind: str, vectors: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("scale", vectors.std(0).clamp_min(1e-6) if len(vectors) > 1 else torch.ones(()))
        widths = [vectors.shape[1], *{"linear": (), "mlp2": (256,), "mlp3": (256, 1024)}[kind]]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores `(n, classes)`."""
        return self.layers((vectors - self.mean) / self.scale)


def classify(
    read: Read, tasks: Mapping[str, Tensor], parts: Parts, config: ProbeConfig, seed: int = 0
) -> dict[str, Tensor]:
    """Train one probe per task on the same vectors, in one pass per epoch; return the labels predicted on `parts.test`.

    Args:
        read: the vectors.
        tasks: labels `(N,)` from 0 on, `NONE` where there is none.
        parts: the split of the vectors.
        config: kind of probe and training.
        seed: of weights and order.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sample = read(parts.train[torch.randperm(len(parts.train))[:4096]])
        classes = {name: int(labels.max()) + 1 for name, labels in tasks.items()}
        probes = {name: Classifier(config.kind, sample, max(n, 2)) for name, n in classes.items()}

    def losses(index: Tensor) -> dict[str, Tensor]:
        vectors = read(index)
        return {
            name: nn.functional.cross_entropy(probe(vectors), tasks[name][index], ignore_index=NONE, reduction="sum")
            / (tasks[name][index] != NONE).sum().clamp_min(1)
            for name, probe in probes.items()
        }

    train(probes, losses, parts, config, seed)
    with torch.no_grad():
        predictions = [{n: p(v).argmax(1) for n, p in probes.items()} for v in map(read, parts.test.split(4096))]
    return {name: torch.cat([batch[name] for batch in predictions]) for name in probes}


def control(labels: Tensor, types: Sequence[Hashable], seed: int = 0) -> Tensor:
    """The control task: every type (word) gets one random label, drawn from the labels of the vectors."""
    rng = np.random.default_rng([seed, 17])
    present = labels[labels != NONE].numpy()
    label_of: dict[Hashable, int] = {}
    for kind in types:
        if kind not in label_of:
            label_of[kind] = int(present[rng.integers(len(present))])
    assigned = torch.tensor([label_of[kind] for kind in types])
    return torch.where(labels == NONE, NONE, assigned)


def split(groups: Sequence[Hashable], test: float, valid: float, seed: int = 0) -> Parts:
    """Split vectors into train, validation and test parts; no group (a record, or several alike) is in two of them.

    Raises:
        UserError: there are too few groups for three parts.
    """
    units = list(dict.fromkeys(groups))
    if len(units) < 3:
        raise UserError(f"{len(units)} records: a probe needs at least three, to train on, to choose on and to score")
    order = np.random.default_rng([seed, 18]).permutation(len(units))
    n_test = max(1, round(test * len(units)))
    n_valid = max(1, round(valid * (len(units) - n_test)))
    part_of = {units[i]: 2 if n < n_test else 1 if n < n_test + n_valid else 0 for n, i in enumerate(order)}
    parts = np.array([part_of[group] for group in groups])
    return Parts(*(torch.from_numpy(np.flatnonzero(parts == n)) for n in range(3)))


def examine(
    reads: Mapping[str, Mapping[int | str, Read]],
    labels: Tensor,
    types: Sequence[Hashable],
    groups: Sequence[Hashable],
    config: ProbeConfig = ProbeConfig(),
    seed: int = 0,
) -> dict[str, Any]:
    """Probe the same labels at every layer of every model, each with its control task.

    Args:
        reads: `{"trained": {layer: vectors}, "untrained": {...}}`; the first model is the one examined.
        labels: `(N,)`, from 0 on; `NONE` where there is none.
        types: the word of every vector, by which the control task labels it.
        groups: the record of every vector: splits and intervals keep records whole.
        config: the probe.
        seed: of the split, the control's labels and the probes.

    Returns:
        `{"majority": share, "models": {model: {layer: {"accuracy", "control", "selectivity" (accuracy less control),
        "gain" (accuracy less that of the last model at this layer)}}}}`, each `{"estimate", "low", "high"}`.

    Raises:
        UserError: too few records, or fewer than two labels.
    """
    if len(labels[labels != NONE].unique()) < 2:
        raise UserError("labels: a probe needs at least two different labels")
    labelled = labels != NONE
    parts = Parts(*(part[labelled[part]] for part in split(groups, config.test, config.valid, seed)))
    tasks = {"accuracy": labels, "control": control(labels, types, seed)}
    correct: dict[str, dict[int | str, dict[str, Any]]] = {}
    for model, layers in reads.items():
        correct[model] = {}
        for layer, read in layers.items():
            predictions = classify(read, tasks, parts, config, seed)
            correct[model][layer] = {n: (predictions[n] == tasks[n][parts.test]).double().numpy() for n in tasks}
    units = [str(groups[i]) for i in parts.test.tolist()]
    baseline = correct[list(reads)[-1]]
    commonest = int(labels[parts.train].mode().values)
    out: dict[str, Any] = {
        "n": len(units),
        "records": len(set(units)),
        "majority": as_finding(statistics.record_interval((labels[parts.test] == commonest).double().numpy(), units)),
        "models": {},
    }
    for model, by_layer in correct.items():
        out["models"][model] = {}
        for layer, r in by_layer.items():
            scores = {name: as_finding(statistics.record_interval(r[name], units)) for name in tasks}
            scores["selectivity"] = as_finding(statistics.record_difference(r["accuracy"], r["control"], units)[0])
            if baseline is not by_layer and layer in baseline:
                gap = statistics.record_difference(r["accuracy"], baseline[layer]["accuracy"], units)[0]
                scores["gain"] = as_finding(gap)
            out["models"][model][layer] = scores
    return out


def as_finding(interval: statistics.Interval) -> dict[str, float]:
    """An interval as a dictionary, for findings."""
    return interval._asdict()
