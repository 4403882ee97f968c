"""Learners `(context x, y, query) -> prediction`, and a comparison of how similar two of them are.

`x (B, N, d)`, `y (B, N, o)`, `query (B, d)`, prediction `(B, o)`. A learner is any such callable: a
trained module, an explicit algorithm, or a language model behind `numbers.NumberLearner`.

Source: von Oswald et al. 2023, arXiv:2212.07677, sections 3-4 and appendix A (metrics, GD++).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from didact import figures
from didact.bounds import BelowOne, Whole
from didact.data.streams import Tensors
from didact.evaluate import statistics
from didact.learn import episodes

DIFFERENCE_STEP = 0.05  # of central differences, the paper's, for learners that read rounded numbers


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Tasks that an in-context learner is compared on.

    Args:
        held_out: share of the tasks held out for the report, by a hash of their content.
        tasks: tasks in the report if a sampler draws them.
        lm_tasks: held-out tasks that a language model is asked.
        lm_grid: candidate answers that a language model scores: lm_tasks (1 + 2 d) lm_grid texts in all.
        lm_digits: decimals that it reads and writes.
    """

    held_out: BelowOne = 0.2
    tasks: Annotated[int, Ge(2)] = 10_000
    lm_tasks: Annotated[int, Ge(2)] = 32
    lm_grid: Annotated[int, Ge(2)] = 41
    lm_digits: Whole = 2


class Learner(Protocol):
    """Learns from a context and answers a query, for B tasks at once."""

    def __call__(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Predict `(B, o)`."""


def of_module(module: nn.Module) -> Learner:
    """A trained module as a learner, in eval mode."""
    module.eval()

    def predict(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        return module(x, y, query)

    return predict


def with_numpy(learner: Learner) -> Callable[[Any, Any, Any], Any]:
    """A learner for one task: `(x (N, d), y (N,) or (N, o), query (d,) or (M, d))`, arrays in and out."""

    def predict(x: Any, y: Any, query: Any) -> Any:
        rows, table, queries = (torch.from_numpy(np.asarray(v, dtype=np.float32)) for v in (x, y, query))
        batch, targets = torch.atleast_2d(queries), table[:, None] if table.dim() == 1 else table
        with torch.no_grad():
            answer = learner(rows.expand(len(batch), -1, -1), targets.expand(len(batch), -1, -1), batch)
        answer = answer[:, 0] if table.dim() == 1 else answer
        return (answer[0] if queries.dim() == 1 else answer).numpy()

    return predict


def in_units(learner: Learner, units: episodes.Units) -> Learner:
    """Wrap a learner of raw numbers for tasks in these units."""
    x_mean, x_std, y_mean, y_std = (torch.from_numpy(v).float() for v in units)

    def predict(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        return (learner(x * x_std + x_mean, y * y_std + y_mean, query * x_std + x_mean) - y_mean) / y_std

    return predict


def losses(learner: Learner, tasks: Tensors) -> Tensor:
    """`1/2 ||target - prediction||^2` of every task, `(B,)`, without gradient."""
    with torch.no_grad():
        return episodes.query_loss(learner(tasks["x"], tasks["y"], tasks["query"]), tasks["target"])


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a learner compares with a reference, with 95 % t intervals over tasks.

    Args:
        loss: mean query loss of the learner.
        reference_loss: that of the reference.
        loss_gap: learner minus reference, paired by task.
        prediction_difference: `||y_learner - y_reference||_2`.
        cosine: cosine of the sensitivities `d y / d query`; 0 where either vanishes.
        sensitivity_difference: `||g_learner - g_reference||_2`.
        black_box: the learner's sensitivities are central differences.
    """

    loss: statistics.Interval
    reference_loss: statistics.Interval
    loss_gap: statistics.Interval
    prediction_difference: statistics.Interval
    cosine: statistics.Interval
    sensitivity_difference: statistics.Interval
    black_box: bool

    def as_dict(self) -> dict[str, Any]:
        """For a report: `{name: {"estimate", "low", "high"}}`."""
        return {k: v._asdict() if isinstance(v, statistics.Interval) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Behaviour:
    """A learner's predictions `(B, o)` and sensitivities `(B, o, d)` on given tasks."""

    prediction: Tensor
    sensitivity: Tensor
    black_box: bool


def behaviour(learner: Learner, tasks: Tensors, step: float = DIFFERENCE_STEP) -> Behaviour:
    """Predictions and sensitivities `d y / d query`: by autograd, else by central differences of `step`."""
    x, y, query = tasks["x"], tasks["y"], tasks["query"].detach().clone().requires_grad_()
    with torch.enable_grad():
        prediction = learner(x, y, query)
        if prediction.requires_grad:
            rows = [
                torch.autograd.grad(prediction[:, j].sum(), query, retain_graph=True)[0]
                for j in range(prediction.shape[1])
            ]
            return Behaviour(prediction.detach(), torch.stack(rows, 1), False)
    slopes = []
    with torch.no_grad():
        for j in range(query.shape[1]):
            shift = torch.zeros_like(query)
            shift[:, j] = step
            slopes.append((learner(x, y, query + shift) - learner(x, y, query - shift)) / (2 * step))
    return Behaviour(prediction.detach(), torch.stack(slopes, -1), True)


def compare(
    learner: Learner | Behaviour, reference: Learner, tasks: Tensors, step: float = DIFFERENCE_STEP
) -> Alignment:
    """Compare a learner with a reference on these tasks. Shapes as in `Learner`.

    Args:
        learner: the learner, or its `behaviour` on the same tasks if already computed.
        reference: a known algorithm.
        tasks: at least two.
        step: of central differences, where the learner has no gradient.
    """
    own = learner if isinstance(learner, Behaviour) else behaviour(learner, tasks, step)
    expected = behaviour(reference, tasks, step)
    target = tasks["target"]
    loss, reference_loss = episodes.query_loss(own.prediction, target), episodes.query_loss(expected.prediction, target)
    cosine = nn.functional.cosine_similarity(own.sensitivity, expected.sensitivity, dim=-1, eps=1e-12).mean(-1)
    difference = (own.sensitivity - expected.sensitivity).flatten(1).norm(dim=-1)
    return Alignment(
        loss=_interval(loss),
        reference_loss=_interval(reference_loss),
        loss_gap=_interval(loss - reference_loss),
        prediction_difference=_interval((own.prediction - expected.prediction).norm(dim=-1)),
        cosine=_interval(cosine),
        sensitivity_difference=_interval(difference),
        black_box=own.black_box,
    )


def report(learner: Learner, references: Mapping[str, Learner], tasks: Tensors) -> dict[str, Any]:
    """Find the known algorithm closest to a learner: an `Alignment` with each, and the least prediction difference.

    `closest.tied_with` names references whose interval overlaps the closest one's.
    """
    measured = behaviour(learner, tasks)
    alignments = {name: compare(measured, reference, tasks) for name, reference in references.items()}
    differences = {name: a.prediction_difference for name, a in alignments.items()}
    best = min(differences, key=lambda name: differences[name].estimate)
    tied = [
        name for name, interval in differences.items() if name != best and not interval.low > differences[best].high
    ]
    return {
        "kind": "behavioural, black-box" if measured.black_box else "white-box",
        "tasks": len(tasks["target"]),
        "closest": {"by": "prediction difference", "reference": best, "tied_with": tied},
        "alignment": {name: a.as_dict() for name, a in alignments.items()},
    }


def rescaled(tasks: Tensors, inputs: float = 1.0, targets: float = 1.0) -> Tensors:
    """The same LINEAR tasks at another input range (targets follow) or task scale: out of distribution."""
    x, y = inputs, inputs * targets
    parts = {"x": x, "query": x, "y": y, "target": y}
    return Tensors({name: tasks[name] * factor for name, factor in parts.items()})


def shifted(
    learners: Mapping[str, Learner], tasks_at: Callable[[float], Tensors], values: Sequence[float], title: str, x: str
) -> figures.Curves:
    """Mean loss of every learner at each value of a shift."""
    batches = [tasks_at(value) for value in values]
    lines = [figures.Line(name, values, [losses(f, t).mean().item() for t in batches]) for name, f in learners.items()]
    return figures.Curves(title=title, x=x, y="query loss", lines=lines)


@episodes.one_thread()
def ood(learners: Mapping[str, Learner], tasks: Tensors) -> list[figures.Figure]:
    """The paper's two curves: input range 0.5-2 and task scale 0.5-5 times that of LINEAR tasks."""
    inputs, targets = np.arange(0.5, 2, 0.03).tolist(), np.arange(0.5, 5, 0.1).tolist()
    by_range, by_scale = (lambda a: rescaled(tasks, inputs=a)), (lambda a: rescaled(tasks, targets=a))
    return [
        shifted(learners, by_range, inputs, "Inputs wider than in training", "input range, times that of training"),
        shifted(learners, by_scale, targets, "Tasks larger than in training", "task scale, times that of training"),
    ]


def _interval(values: Tensor) -> statistics.Interval:
    return statistics.mean_interval(values.double().cpu().numpy())
