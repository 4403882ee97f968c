"""DEPN: switch off the feed-forward neurons that carry the forget answers (Wu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from didact.bounds import Count, Share, Whole
from didact.learn import specialists
from didact.methods.unlearning.survey import SURVEY
from didact.models import attribution
from didact.models.model import Model, copy_of
from didact.registry import method
from didact.types import Demo, Result


@method("unlearning-survey.depn", **SURVEY, gives=("models", "findings"), capabilities=("hidden",), kinds=("causal",),
        protocol=("forget",))  # fmt: skip
def depn(
    model: Model,
    forget: Sequence[Demo],
    *,
    neurons: Whole = 20,
    steps: Count = 20,
    threshold: Share = 0.1,
    share: Share = 0.5,
) -> Result:
    """Find the feed-forward neurons that carry the forget answers, and switch them off (DEPN). Nothing is trained.

        Att(w) = w/m sum_{k=1..m} dP(answer | activation w k/m)/dw

    for the activation w of every neuron (the input of the down projection), P the mean probability of the answer's
    tokens. A neuron counts for a record if its attribution is above `threshold` of that record's largest; the `neurons`
    that count most often (in at least `share` of the records, ties by sum) get a zero column.

    Args:
        model: a causal model with a down projection in every block; left unchanged.
        forget: records whose completions must go.
        neurons: maximum number of neurons to switch off.
        steps: m, steps of the integral.
        threshold: share of a record's largest attribution.
        share: share of the records that a neuron must count for.

    Raises:
        UserError: no down projection is found.
    """
    edited = copy_of(model)
    rows = specialists.rows(model, forget, "forget")
    attributions = torch.stack([attribution.attributions(edited, row, steps) for row in rows])
    top = attributions.flatten(1).amax(1).clamp(min=torch.finfo(attributions.dtype).tiny)
    frequency = (attributions > threshold * top[:, None, None]).double().mean(0)
    order = (frequency + 1e-3 * torch.sigmoid(attributions.mean(0).double())).flatten().argsort(descending=True)
    width = attributions.shape[-1]
    chosen = [(int(i) // width, int(i) % width) for i in order[:neurons] if frequency.flatten()[i] >= share]
    for layer, neuron in chosen:
        attribution.switch_off(edited, layer, neuron)
    edited.module.zero_grad(set_to_none=True)
    return Result(models={"model": edited}, findings={"neurons": [list(c) for c in chosen], "records": len(forget)})
