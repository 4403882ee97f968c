"""A user's language model against exact references of labels in its context: one call, one result."""

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
    """Labels alone against the Dirichlet-categorical; with inputs against the mixture of one specialist a task."""
    given = label_streams.streams(tasks)
    theirs = label_streams.distributions(model, given)
    blank = label_streams.distributions(untrained(model), given)
    classes, labels = len(given.names), given.labels
    uniform = torch.full_like(theirs, 1 / classes)
    more: dict[str, Any] = {}
    if given.inputs is None:
        where = torch.arange(len(labels))
        references = {"Dirichlet-categorical": bayes.dirichlet(labels, classes, prior), "uniform": uniform}
        more["fitted_prior"] = fitted_prior(theirs, labels)
    else:
        if len(set(given.tasks)) < 2:
            raise UserError(
                "tasks: prompts with inputs need two tasks, named in 'task': the reference is their mixture"
            )
        texts = sorted({t for prompt in given.inputs for t in prompt})
        vectors = embed.embed(model, texts).double().numpy()
        vectors = (vectors - vectors.mean(0)) / np.where(vectors.std(0) > 0, vectors.std(0), 1.0)
        parts, where = label_streams.specialists(given, dict(zip(texts, vectors, strict=True)))
        labels, theirs, blank, uniform = (v[where] for v in (labels, theirs, blank, uniform))
        names, shares = list(parts), Counter(given.tasks)
        mixture, beta = label_streams.mixed(list(parts.values()), [shares[n] / len(given.tasks) for n in names], labels)
        references = {"mixture": mixture, **{f"specialist {n}": p for n, p in parts.items()}, "uniform": uniform}
        own = torch.tensor([names.index(given.tasks[i]) for i in where.tolist()])
        true = beta.gather(-1, own[:, None, None].expand(-1, beta.shape[1], 1))[..., 0]
        more["recognition"] = curves.curve(true)
    found = label_streams.report(theirs, references, labels, blank) | more | {"labels": list(given.names)}
    result = Result(findings=found)
    first, apart = next(iter(found["distance"].items()))
    result.metrics = {
        "distance": Metric(
            after=apart["estimate"], before=apart["untrained"]["estimate"], n=len(where),
            ci=(apart["low"], apart["high"]),
            unit="nats", better="lower", help=f"KL from the {first} to the model, a label; before: untrained copy",
        ),
        "loss": Metric(
            after=found["loss"]["estimate"], gold=apart["reference_loss"]["estimate"], n=len(where),
            ci=(found["loss"]["low"], found["loss"]["high"]), unit="nats", better="lower",
            help=f"of a label, among the labels; gold: the {first}",
        ),
    }  # fmt: skip
    lines = [
        figures.Line(n, list(range(labels.shape[1])), c["estimate"], c["low"], c["high"])
        for n, c in found["curves"].items() if n != "loss"
    ]  # fmt: skip
    result.figures = [
        figures.Curves(title="How far from each reference", x="labels before", y="KL in nats", lines=lines)
    ]
    return result


def fitted_prior(theirs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The Dirichlet prior that the model's predictions are nearest to, and how near."""
    classes = theirs.shape[-1]
    grid = np.geomspace(0.01, 100, 81)
    apart = [float(label_streams.divergence(bayes.dirichlet(labels, classes, a), theirs).mean()) for a in grid]
    best = int(np.argmin(apart))
    return {"prior": float(grid[best]), "distance": apart[best]}
