"""Compare a user's language model with exact predictors of the labels in its context: one call, one result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from didact import figures
from didact.evaluate import curves, label_streams
from didact.evaluate.references import bayes
from didact.infer import embed
from didact.models.model import Model
from didact.models.untrained import untrained
from didact.types import Example, Metric, Result, UserError


def examine(model: Model, tasks: Sequence[Example], prior: float) -> Result:
    """Labels alone against the Dirichlet-categorical; with inputs against a mixture of one specialist per task."""
    streams = label_streams.streams(tasks)
    predicted = label_streams.distributions(model, streams)
    untrained_logp = label_streams.distributions(untrained(model), streams)
    classes, labels = len(streams.names), streams.labels
    uniform = torch.full_like(predicted, 1 / classes)
    extra: dict[str, Any] = {}
    if streams.inputs is None:
        rows = torch.arange(len(labels))
        references = {"Dirichlet-categorical": bayes.dirichlet(labels, classes, prior), "uniform": uniform}
        extra["fitted_prior"] = fitted_prior(predicted, labels)
    else:
        if len(set(streams.tasks)) < 2:
            raise UserError(
                "tasks: prompts with inputs need two tasks, named in 'task': the reference is their mixture"
            )
        texts = sorted({t for prompt in streams.inputs for t in prompt})
        vectors = embed.embed(model, texts).double().numpy()
        vectors = (vectors - vectors.mean(0)) / np.where(vectors.std(0) > 0, vectors.std(0), 1.0)
        parts, rows = label_streams.specialists(streams, dict(zip(texts, vectors, strict=True)))
        labels, predicted, untrained_logp, uniform = (v[rows] for v in (labels, predicted, untrained_logp, uniform))
        names, shares = list(parts), Counter(streams.tasks)
        mixture, beta = label_streams.mixed(
            list(parts.values()), [shares[n] / len(streams.tasks) for n in names], labels
        )
        references = {"mixture": mixture, **{f"specialist {n}": p for n, p in parts.items()}, "uniform": uniform}
        true_part = torch.tensor([names.index(streams.tasks[i]) for i in rows.tolist()])
        true = beta.gather(-1, true_part[:, None, None].expand(-1, beta.shape[1], 1))[..., 0]
        extra["recognition"] = curves.curve(true)
    findings = (
        label_streams.report(predicted, references, labels, untrained_logp) | extra | {"labels": list(streams.names)}
    )
    result = Result(findings=findings)
    first, distance = next(iter(findings["distance"].items()))
    result.metrics = {
        "distance": Metric(
            after=distance["estimate"], before=distance["untrained"]["estimate"], n=len(rows),
            ci=(distance["low"], distance["high"]),
            unit="nats", better="lower", help=f"KL per label from the {first} to the model; before: untrained copy",
        ),
        "loss": Metric(
            after=findings["loss"]["estimate"], gold=distance["reference_loss"]["estimate"], n=len(rows),
            ci=(findings["loss"]["low"], findings["loss"]["high"]), unit="nats", better="lower",
            help=f"loss per label, among the labels; gold: the {first}",
        ),
    }  # fmt: skip
    lines = [
        figures.Line(n, list(range(labels.shape[1])), c["estimate"], c["low"], c["high"])
        for n, c in findings["curves"].items() if n != "loss"
    ]  # fmt: skip
    result.figures = [
        figures.Curves(title="How far from each reference", x="labels before", y="KL in nats", lines=lines)
    ]
    return result


def fitted_prior(predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The Dirichlet prior closest to the model's predictions, and its distance from them."""
    classes = predicted.shape[-1]
    grid = np.geomspace(0.01, 100, 81)
    distances = [float(label_streams.divergence(bayes.dirichlet(labels, classes, a), predicted).mean()) for a in grid]
    best = int(np.argmin(distances))
    return {"prior": float(grid[best]), "distance": distances[best]}
