"""Training on groups of answers: any loss on the log-probs of k rows that belong together, and of their reference.

    loss(logp (B, k), ref_logp (B, k), index (B,)) -> (B,)

DPO, NPO, SPIN, KTO, D2O and autoregressive rewards differ in that function alone (`objectives.preference`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from didact.data import encode
from didact.data.streams import Batches, ExampleGroup, MicroBatch, Stream
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import Loss, TrainResult
from didact.models import cost
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Fit, Preference

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`loss(logp, ref_logp, index)`: log-probs `(B, k)` of each group's rows under the model and under the reference (zeros
without one), and the indices of these groups in the stream `(B,)`; returns one loss per group, `(B,)`."""
Log = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
"""Numbers to log from the same arguments, detached: one per group, `(B,)` each."""


def groups(model: Model, preferences: Sequence[Preference], name: str = "preferences") -> list[ExampleGroup]:
    """The chosen and the rejected completion of every pair, tokenised."""
    sides = [
        encode.rows(model.tokenizer, pairs, model.kind, model.context, name)
        for pairs in ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    ]
    return list(zip(*sides, strict=True))


def reference_of(
    reference: Model | Tensor | None, items: Sequence[ExampleGroup], model: Model, drawn: Sequence[int] | None = None
) -> Tensor | None:
    """Log-probs `(N, k)` under a reference, on the model's device: computed once, or as given.

    Only those of the items that training draws are computed: `drawn` are their indices, all by default.
    """
    if isinstance(reference, Model):
        chosen = list(range(len(items)) if drawn is None else drawn)
        if not chosen:
            return None
        with cost.partly(len(chosen) / len(items)):
            logp = language.reference_logp(reference, [items[i] for i in chosen])
        reference = logp.new_full((len(items), logp.shape[1]), torch.nan)
        reference[chosen] = logp
    return None if reference is None else reference.to(model.device)


def terms(
    loss: PairLoss,
    ref: Tensor | None = None,
    *,
    name: str = "loss",
    weight: float = 1.0,
    share: Tensor | None = None,
    mean: bool = False,
    log: Log | None = None,
) -> Loss:
    """Return the function that computes the loss terms of a stream of groups.

    Args:
        loss: see `PairLoss`.
        ref: log-probs of all groups under the reference, `(N, k)`; None gives the loss zeros.
        name: name of the term.
        weight: weight of the term.
        share: weight of every group, `(N,)`; 1 by default.
        mean: log-probs are means over a row's tokens; sums otherwise.
        log: further numbers for the history.
    """

    def compute(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        logp, count = language.sequence_logp(student, micro)
        ref_logp = torch.zeros_like(logp) if ref is None else ref[micro.index]
        if mean:
            logp, ref_logp = logp / count, ref_logp / count
        losses = loss(logp, ref_logp, micro.index)
        if share is not None:
            losses = share.to(losses.device)[micro.index].to(losses) * losses
        rows = f"{micro.stream}.rows"
        logged = log(logp.detach(), ref_logp, micro.index) if log else {}
        return {name: Term(losses.sum(), rows, weight)} | {k: Term(v.sum(), rows, 0.0) for k, v in logged.items()}

    return compute


def margins(scale: float) -> Log:
    """Log the scaled `margin` of a pair's log-ratios, and the `accuracy`: how often it is above 0."""

    def log(logp: Tensor, ref: Tensor, index: Tensor) -> Mapping[str, Tensor]:
        margin = scale * preference.margin(logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1])
        return {"margin": margin, "accuracy": (margin > 0).to(margin)}

    return log


def train(
    model: Model,
    items: Sequence[ExampleGroup],
    loss: PairLoss,
    fit: Fit,
    *,
    reference: Model | Tensor | None = None,
    mean: bool = False,
    share: Tensor | None = None,
    log: Log | None = None,
    beside: Mapping[str, tuple[Sequence[ExampleGroup], Loss]] | None = None,
    coupled: bool = False,
    hooks: Sequence[Hook] = (),
    name: str = "train",
    loss_name: str | None = None,
    stream: str = "pairs",
) -> TrainResult:
    """Train a copy of `model` by `loss` on N groups of k rows, any continuations of the same tokens.

    Args:
        model: a causal or seq2seq model.
        items: the groups.
        loss: see `PairLoss`.
        fit: how to train.
        reference: a frozen model, or log-probs `(N, k)` under one; None is reference-free.
        mean: log-probs are means over a row's tokens; sums otherwise.
        share: weight of every group, `(N,)`.
        log: further numbers for the history; see `margins`.
        beside: further streams with their losses: demonstrations, records to retain.
        coupled: the loss couples the groups of a batch, which is then never split.
        hooks: called around every step.
        name: name of the phase and of its checkpoints.
        loss_name: name of the loss in the history; the phase's by default.
        stream: name of the groups' stream.
    """
    order = Batches({stream: Stream(items, fit.rows)}, fit.seed)
    ref = reference_of(reference, items, model, order.drawn(stream, fit.total_steps(len(items))))
    extra = dict(beside or {})
    losses = {stream: terms(loss, ref, name=loss_name or name, share=share, mean=mean, log=log)}
    return language.train(
        model, {stream: items} | {k: rows for k, (rows, _) in extra.items()},
        losses | {k: term for k, (_, term) in extra.items()}, fit, coupled=coupled, hooks=hooks, name=name,
    )  # fmt: skip


def implicit_rewards(model: Model, start: Model, preferences: Sequence[Preference], beta: float) -> Tensor:
    """`r = beta (logp - ref_logp)` of both sides of every pair, `(N, 2)`: the reward a trained model stands for."""
    items = groups(model, preferences)
    with torch.no_grad():
        return beta * (language.reference_logp(model, items) - language.reference_logp(start, items)).cpu()
