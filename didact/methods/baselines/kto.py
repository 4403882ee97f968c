"""Kahneman-Tversky optimisation (KTO): the baseline for thumbs up and thumbs down without pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from didact.bounds import NonNegative, Positive
from didact.data import encode
from didact.learn import pairs
from didact.learn.fit import Hook
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Judged, Result, UserError


@method(
    "kto",
    paper="KTO: Model Alignment as Prospect Theoretic Optimization",
    year=2024,
    source="arXiv:2402.01306",
    protocol=("judged",),
    baseline=True,
)
def kto(
    model: Model,
    judged: Sequence[Judged],
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
    fit: Fit = Fit(lr=5e-7, epochs=1, rows=32, warmup=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a model on completions labelled good or bad, each on its own.

        L = mean of w (1 - sigmoid(+-beta (r - z))),    r = logp - ref_logp,    + for good, - for bad

    logp is the SUM over completion tokens, ref the initial model. z = max(0, mean r) over the batch's prompts, each
    with the completion of another record: an estimate of the KL divergence, without gradient.

    Args:
        model: a causal or seq2seq model; left unchanged, a trained copy is returned.
        judged: completions with the label true (good) or false (bad).
        beta: strength of the pull towards the initial model; larger stays closer.
        desirable_weight: weight of good completions; the paper keeps n_good w_good / (n_bad w_bad) in [1, 4/3].
        undesirable_weight: weight of bad completions.
        fit: how to train; a batch is never split, since z couples its rows, and should have 8 rows or more.
        hooks: called around every step.

    Raises:
        UserError: one record only; a completion longer than the context; the loss became NaN.
    """
    if len(judged) < 2 or fit.rows < 2:
        raise UserError("kto needs two records a batch at least: z is taken over the other records' completions")
    mismatched = [judged[i] for i in _strangers([j.prompt for j in judged])]
    columns = (
        [(j.prompt, j.completion) for j in judged],
        [(j.prompt, o.completion) for j, o in zip(judged, mismatched, strict=True)],
    )
    rows = [encode.rows(model.tokenizer, column, model.kind, model.context, "judged") for column in columns]
    desirable = torch.tensor([j.label for j in judged], device=model.device)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)

    def divergence(logp: Tensor, ref: Tensor) -> Tensor:
        return (logp - ref)[:, 1].detach().mean().clamp(min=0)

    def loss(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
        z = divergence(logp, ref)
        return preference.kto(logp[:, 0], ref[:, 0], z, desirable[index], beta, weight[index].to(logp))

    def log(logp: Tensor, ref: Tensor, index: Tensor) -> Mapping[str, Tensor]:
        z, reward = divergence(logp, ref), beta * (logp - ref)[:, 0]
        right = ((reward > beta * z) == desirable[index]).to(reward)
        return {"divergence": z.expand(len(index)), "accuracy": right}

    trained = pairs.train(
        model, list(zip(*rows, strict=True)), loss, fit, reference=model, log=log, coupled=True, hooks=hooks,
        name="kto", stream="judged",
    )  # fmt: skip
    return trained.result()


def _strangers(prompts: Sequence[str]) -> list[int]:
    """For each record the index of the next one with another prompt, cyclically; of the very next if all are equal."""
    n = len(prompts)
    partners = [(i + 1) % n for i in range(n)]
    if len(set(prompts)) > 1:
        for i in reversed(range(2 * n)):  # two passes, so that the last records can point to the first ones
            if prompts[(i + 1) % n] == prompts[i % n]:
                partners[i % n] = partners[(i + 1) % n]
            else:
                partners[i % n] = (i + 1) % n
    return partners
