"""Training of language models: streams of rows in, a trained copy out; and the loss terms that methods share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from didact import registry
from didact.data import encode, general
from didact.data.streams import Batches, ExampleGroup, MicroBatch, Stream
from didact.learn import distributed, recompute
from didact.learn import fit as loop
from didact.learn.checkpoint import State
from didact.learn.fit import Hook, Term
from didact.models import adapters, forward, fused, prefix, spread
from didact.models.forward import Tokenwise
from didact.models.model import Model, copy_of, sharing
from didact.objectives import reduce
from didact.parallel import launch, mesh, stages, tensor
from didact.parallel.sharding import Sharded
from didact.types import Cost, Fit, Result, UserError

REPLAY = "replay"  # name of the stream of general text and of its loss term
Loss = Callable[[Model, MicroBatch], Mapping[str, Term]]


@dataclass
class TrainResult:
    """A trained model, its log rows and what it cost."""

    model: Model
    history: list[dict[str, Any]]
    cost: Cost
    state: State

    def result(self, **parts: Any) -> Result:
        """Return this training as a method's result; `parts` (findings, records, ...) extend or replace its fields."""
        fields: dict[str, Any] = {"models": {"model": self.model}, "history": self.history, "cost": self.cost}
        return Result(**fields | parts)


def train(
    model: Model,
    streams: Mapping[str, Sequence[ExampleGroup]],
    loss: Loss | Mapping[str, Loss],
    fit: Fit,
    *,
    coupled: bool = False,
    hooks: Iterable[Hook] = (),
    name: str = "train",
    quiet: bool = False,
    keep: bool = False,
) -> TrainResult:
    """Train a copy of `model` (or a LoRA adapter on it) on streams of items, `fit.rows` of each a step.

    An epoch is a pass over the first stream. `model` is not changed, so that it can serve as the reference; an adapter
    on it is merged first, or trained further under LoRA (`adapters.ready`) or, of any kind, with `keep`. `loss` returns
    the terms of a micro-batch: one function for all streams, or one for each.
    """
    for stream, items in streams.items():
        if not items:
            raise UserError(f"{stream}: no records")
    start = time.monotonic()
    model = model if keep else adapters.ready(model, fit.lora)
    if model.quantized and not fit.lora:
        raise UserError(f"weights in {model.quantized} cannot be trained: train an adapter on them (lora = 8)")
    spread = fit.parallel != "ddp"
    if spread and model.quantized:
        raise UserError(f"parallel = {fit.parallel}: weights in {model.quantized} cannot be sharded: use ddp")
    student = sharing(model) if spread or (fit.lora and not adapters.adapted(model)) else copy_of(model)
    if fit.lora:
        student = adapters.lora(
            student, fit.lora, fit.lora_alpha, fit.seed, fit.lora_targets, fit.lora_dropout, fit.dora
        )  # fmt: skip
    else:
        adapters.placeless(student)
        if not any(p.requires_grad for p in student.module.parameters()):
            student.module.requires_grad_(True)
    count = len(next(iter(streams.values())))
    replay = replayed(model, fit)
    replay_digests = {k: registry.digest(f"{fit.replay} {s}") for k, s in replay.items()}
    batches = Batches(
        {k: Stream(items, fit.rows) for k, items in streams.items()} | replay, fit.seed, model.kind, model.pad,
        model.start, forward.packing_of(student, fit.packing),
    )  # fmt: skip

    def loss_fn(module: nn.Module, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream in replay:
            return {REPLAY: cross_entropy(student, micro, weight=fit.replay / (1 - fit.replay))}
        stream_loss = loss[micro.stream] if isinstance(loss, Mapping) else loss
        return stream_loss(student, micro)

    steps, warmup = fit.total_steps(count), fit.warmup_count(count)
    fit = fit.replace(micro_tokens=fit.micro_tokens or forward.at_once(student))
    run_id = identity(model, streams, fit) | replay_digests
    with (
        sharding(student, fit) as sharded,
        fused.layers(student.module, not spread),
        recompute.layers(student.module, fit.checkpointing),
    ):
        history, state = loop.fit(
            student.module, batches, loss_fn, fit.replace(replay=0.0), hooks, steps=steps, warmup=warmup,
            coupled=coupled, name=name, identity=run_id, quiet=quiet, sharded=sharded,
        )  # fmt: skip
    student.module.eval()
    cost = Cost(
        tokens=3 * state.tokens, flops=6.0 * student.parameters * state.tokens, seconds=time.monotonic() - start
    )
    return TrainResult(student, history, cost, state)


@contextlib.contextmanager
def sharding(student: Model, fit: Fit) -> Iterator[Sharded | None]:
    """Shard the student's weights over the processes inside the block, as `fit.parallel` says; gather them after it.

    Raises:
        UserError: the number of processes does not fit, the optimizer needs whole weights, or the model's layers
            cannot be split.
    """
    if fit.parallel == "ddp":
        yield None
        return
    if fit.optimizer == "adafactor":  # its factors are sums over rows and columns
        raise UserError(f"parallel = {fit.parallel}: adafactor takes whole matrices: use adamw, adam or sgd")
    launch.several(fit.parallel)
    pp, _, tp = launch.parallel(fit.parallel) or (1, 1, 1)
    reason = stages.refusal(prefix.inner_of(student), pp) if pp > 1 else None
    if pp > 1 and prefix.learned_prompt(student):
        reason = "a learned prompt belongs to no stage"
    if tp > 1:
        reason = reason or tensor.unfit(student.module, tp)
    if reason:
        raise UserError(f"parallel = {fit.parallel}: {reason}: take fsdp2")
    distributed.rank(student.module)
    over = mesh.over(fit.parallel, student.device.type)
    sharded = Sharded(student.module, over, spread.layers(student.module))
    yield sharded
    student.module = sharded.gathered()


def replayed(model: Model, fit: Fit) -> dict[str, Stream]:
    """Return the stream of general text that is mixed in, `fit.replay` of the examples of a step; none if that is 0."""
    if not fit.replay:
        return {}
    texts = general.texts(fit.replay_from, "replay")
    rows = [row for text in texts for row in encode.windows(model.tokenizer, [text], model.context - 1)]
    return {REPLAY: Stream.of(rows, max(1, round(fit.rows * fit.replay / (1 - fit.replay))))}


def single(rows: Iterable[Any]) -> list[ExampleGroup]:
    """Rows as items of one row."""
    return [(r,) for r in rows]


def nll(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    """The loss of fine-tuning: the mean of -log p over label tokens."""
    return {"nll": cross_entropy(student, micro)}


def sft(student: Model, micro: MicroBatch, weight: float) -> Mapping[str, Term]:
    """Return the loss of fine-tuning as the term `sft`, with a weight, to be added to another loss."""
    return {"sft": cross_entropy(student, micro, weight=weight)}


def cross_entropy(model: Model, micro: MicroBatch, per: str | None = None, weight: float = 1.0) -> Term:
    """Mean next-token loss over label tokens, in nats: what transformers calls `loss`."""
    logp = forward.tokens(model, micro.tokens)["logp"]
    return Term(-logp.sum(), per or f"{micro.stream}.tokens", weight)


def weighted_cross_entropy(model: Model, micro: MicroBatch, first: Tensor, weight: float) -> Term:
    """Next-token loss in which the first `first (items,)` label tokens of every row have weight `weight`.

    It is divided by the number of label tokens, not by the sum of their weights.
    """
    logp, row = forward.tokens(model, micro.tokens)["logp"], micro.tokens.row
    counts = torch.bincount(row, minlength=micro.items)
    position = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    weights = torch.where(position < first[row], weight, 1.0).to(logp)
    return Term(-(weights * logp).sum(), f"{micro.stream}.tokens")


def token_mean(
    model: Model,
    micro: MicroBatch,
    fn: Tokenwise,
    weight: float = 1.0,
    reference: Model | None = None,
    everywhere: bool = False,
) -> Term:
    """A token function averaged over a stream's label tokens, or over all its positions.

    `reference` is a frozen model whose `ref_logits` the function takes.
    """
    everywhere = everywhere and model.kind == "causal"  # an encoder-decoder predicts its labels only
    positions = micro.tokens.everywhere() if everywhere else micro.tokens
    frozen = None
    if reference is not None:
        was_training = reference.module.training
        reference.module.eval()  # a reference has no dropout
        with torch.no_grad():
            frozen = (reference, forward.label_states(reference, positions))
        reference.module.train(was_training)
    values = forward.tokens(model, positions, {"value": fn}, reference=frozen)["value"]
    return Term(values.sum(), f"{micro.stream}.{'seen' if everywhere else 'tokens'}", weight)


def sequence_logp(model: Model, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """Log-prob of each row of each item, SUM over its tokens, and the token counts: `(items, arity)` twice."""
    rows = micro.items * micro.arity
    logp = forward.tokens(model, micro.tokens)["logp"]
    total = reduce.row_sum(logp, micro.tokens.row, rows)
    count = reduce.row_count(micro.tokens.row, rows).to(total)
    return total.view(-1, micro.arity), count.view(-1, micro.arity)


def reference_logp(reference: Model, items: Sequence[ExampleGroup]) -> Tensor:
    """Log-probs of all rows of all items under a frozen model, `(items, arity)`, computed once and cached on disk."""
    arity = len(items[0])
    total = forward.cached_row_logp(reference, [r for item in items for r in item])
    return total.view(-1, arity).to(next(reference.module.parameters()).dtype)


def group_logp(model: Model, items: Sequence[ExampleGroup]) -> Tensor:
    """Log-probs of all rows of all items under any model, `(items, arity)`, not cached, float64."""
    return forward.row_logp(model, [r for item in items for r in item])[0].view(len(items), -1)


def identity(model: Model, data: Any, fit: Fit) -> dict[str, str]:
    """Identify the run of a checkpoint: the start model's weights, and the data unless the method's call names them."""
    if not fit.folder:
        return {}
    return {"weights": model.fingerprint()} | ({} if registry.identity() else {"data": registry.digest(data)})
