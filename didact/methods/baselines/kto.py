"""Kahneman-Tversky optimisation: the baseline for thumbs up and thumbs down without pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from didact.data import encode
from didact.data.streams import MicroBatch
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Judged, Result, UserError


@method(
    "kto",
    paper="KTO: Model Alignment as Prospect Theoretic Optimization",
    year=2024,
    source="arXiv:2402.01306",
    protocol=None,
    baseline=True,
)
def kto(
    model: Model,
    judged: Sequence[Judged],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    fit: Fit = Fit(lr=5e-7, epochs=1, rows=32, warmup=0.1),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Teach a model from completions that were found good or bad, each on its own.

        L = mean of w (1 - sigmoid(+-beta (r - z))),    r = logp - ref_logp,    + for good, - for bad

    logp is the SUM over completion tokens, ref the model as it came. z = max(0, mean r) over the batch's
    prompts, each with the completion of another record: an estimate of the divergence, without gradient.

    Args:
        model: a causal or seq2seq model; it stays as it was, a taught copy is returned.
        judged: completions with the label true (good) or false (bad).
        beta: how far the model may move from where it came from; larger stays closer.
        desirable_weight: of good completions; the paper keeps n_good w_good / (n_bad w_bad) in [1, 4/3].
        undesirable_weight: of bad ones.
        fit: how to train; a batch is never split, for z couples its rows, and should hold 8 rows or more.
        hooks: called around every step.

    Raises:
        UserError: one record only; a completion longer than the context; the loss became NaN.
    """
    if beta <= 0 or min(desirable_weight, undesirable_weight) < 0 or len(judged) < 2 or fit.rows < 2:
        raise UserError("kto needs beta above 0, weights of 0 or more, and two records a batch at least")
    others = [*judged[1:], judged[0]]  # any other record's completion does: none belongs to the prompt
    sides = [
        encode.rows(model.tokenizer, pairs, model.kind, model.context, "judged")
        for pairs in (
            [(j.prompt, j.completion) for j in judged],
            [(j.prompt, o.completion) for j, o in zip(judged, others, strict=True)],
        )
    ]
    items = list(zip(*sides, strict=True))
    ref = language.reference_logp(model, items).to(model.device)
    good = torch.tensor([j.label for j in judged], device=model.device)
    weight = torch.where(good, desirable_weight, undesirable_weight)

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        logp, _ = language.sequence_logp(student, micro)
        was, kind = ref[micro.index], good[micro.index]
        z = (logp - was)[:, 1].detach().mean().clamp(min=0)
        losses = preference.kto(logp[:, 0], was[:, 0], z, kind, beta, weight[micro.index].to(logp))
        moved = beta * (logp - was)[:, 0].detach()
        right = ((moved > beta * z) == kind).to(moved)
        return {
            "kto": Term(losses.sum(), "judged.rows"),
            "divergence": Term(z * len(kind), "judged.rows", 0.0),
            "accuracy": Term(right.sum(), "judged.rows", 0.0),
        }

    options = {"beta": beta, "weights": [desirable_weight, undesirable_weight]}
    taught = language.train(
        model, {"judged": items}, terms, fit, coupled=True, hooks=hooks, name="kto", identity=options
    )
    return Result(models={"model": taught.model}, history=taught.history, cost=taught.cost)
