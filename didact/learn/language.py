"""Teaching language models: streams of rows in, a taught copy out; and the loss terms methods share."""

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

REPLAY = "replay"  # the stream of general text, and its term
Loss = Callable[[Model, MicroBatch], Mapping[str, Term]]


@dataclass
class TrainResult:
    """A trained model, its log rows and what it cost."""

    model: Model
    history: list[dict[str, Any]]
    cost: Cost
    state: State

    def result(self, **parts: Any) -> Result:
        """This training as a method's result; `parts` are its findings, records, warnings, or a model in its place."""
        made: dict[str, Any] = {"models": {"model": self.model}, "history": self.history, "cost": self.cost}
        return Result(**made | parts)


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

    An epoch is a pass over the first stream. The given model stays as it was, so that it can serve as the reference;
    an adapter is merged first, or goes on under LoRA (`adapters.ready`) or, whatever it is, with `keep`. `loss` gives
    the terms of a micro-batch, one function for all streams or one for each.
    """
    for stream, items in streams.items():
        if not items:
            raise UserError(f"{stream}: no records")
    began = time.monotonic()
    model = model if keep else adapters.ready(model, fit.lora)
    if model.quantized and not fit.lora:
        raise UserError(f"weights in {model.quantized} cannot be trained: train an adapter on them (lora = 8)")
    spread = fit.parallel != "ddp"
    if spread and model.quantized:
        raise UserError(f"parallel = {fit.parallel}: weights in {model.quantized} cannot lie over processes: take ddp")
    student = sharing(model) if spread or (fit.lora and not adapters.adapted(model)) else copy_of(model)
    if fit.lora:
        student = adapters.lora(
            student, fit.lora, fit.lora_alpha, fit.seed, fit.lora_targets, fit.lora_dropout, fit.dora
        )  # fmt: skip
    else:
        adapters.placeless(student)
        if not any(p.requires_grad for p in student.module.parameters()):
            student.module.requires_grad_(True)
    first = len(next(iter(streams.values())))
    beside = replayed(model, fit)
    mixed = {k: registry.digest(f"{fit.replay} {s}") for k, s in beside.items()}
    batches = Batches(
        {k: Stream(items, fit.rows) for k, items in streams.items()} | beside, fit.seed, model.kind, model.pad,
        model.start, forward.packing_of(student, fit.packing),
    )  # fmt: skip

    def loss_fn(module: nn.Module, micro: MicroBatch) -> Mapping[str, Term]:
        if micro.stream in beside:
            return {REPLAY: cross_entropy(student, micro, weight=fit.replay / (1 - fit.replay))}
        of = loss[micro.stream] if isinstance(loss, Mapping) else loss
        return of(student, micro)

    steps, warmup = fit.total_steps(first), fit.warmup_count(first)
    fit = fit.replace(micro_tokens=fit.micro_tokens or forward.at_once(student))
    known = identity(model, streams, fit) | mixed
    with (
        sharding(student, fit) as sharded,
        fused.layers(student.module, not spread),
        recompute.layers(student.module, fit.checkpointing),
    ):
        history, state = loop.fit(
            student.module, batches, loss_fn, fit.replace(replay=0.0), hooks, steps=steps, warmup=warmup,
            coupled=coupled, name=name, identity=known, quiet=quiet, sharded=sharded,
        )  # fmt: skip
    student.module.eval()
    cost = Cost(
        tokens=3 * state.tokens, flops=6.0 * student.parameters * state.tokens, seconds=time.monotonic() - began
    )
    return TrainResult(student, history, cost, state)


@contextlib.contextmanager
def sharding(student: Model, fit: Fit) -> Iterator[Sharded | None]:
    """Inside, the student's weights lie over the processes as `fit.parallel` says; after it each has all of them.

    Raises:
        UserError: there are other processes than that takes, the optimizer takes weights whole, or the model's layers
            cannot be split.
    """
    if fit.parallel == "ddp":
        yield None
        return
    if fit.optimizer == "adafactor":  # its factors are sums over rows and columns
        raise UserError(f"parallel = {fit.parallel}: adafactor takes whole matrices: adamw, adam or sgd")
    launch.several(fit.parallel)
    pp, _, tp = launch.parallel(fit.parallel) or (1, 1, 1)
    why = stages.refusal(prefix.inner_of(student), pp) if pp > 1 else None
    if pp > 1 and prefix.learned_prompt(student):
        why = "a learned prompt lies in no stage"
    if tp > 1:
        why = why or tensor.unfit(student.module, tp)
    if why:
        raise UserError(f"parallel = {fit.parallel}: {why}: take fsdp2")
    distributed.rank(student.module)
    over = mesh.over(fit.parallel, student.device.type)
    sharded = Sharded(student.module, over, spread.layers(student.module))
    yield sharded
    student.module = sharded.gathered()


def replayed(model: Model, fit: Fit) -> dict[str, Stream]:
    """General text beside a training's own streams, `fit.replay` of the examples of a step; nothing without it."""
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
    """The same beside another loss, as the term `sft` of this weight."""
    return {"sft": cross_entropy(student, micro, weight=weight)}


def cross_entropy(model: Model, micro: MicroBatch, per: str | None = None, weight: float = 1.0) -> Term:
    """Mean next-token loss over label tokens, in nats: what transformers calls `loss`."""
    logp = forward.tokens(model, micro.tokens)["logp"]
    return Term(-logp.sum(), per or f"{micro.stream}.tokens", weight)


def weighted_cross_entropy(model: Model, micro: MicroBatch, first: Tensor, weight: float) -> Term:
    """Next-token loss where the first label tokens of every row, `first (items,)` many, count only `weight`.

    It is divided by the number of label tokens, not by the sum of their weights.
    """
    logp, row = forward.tokens(model, micro.tokens)["logp"], micro.tokens.row
    counts = torch.bincount(row, minlength=micro.items)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    weights = torch.where(place < first[row], weight, 1.0).to(logp)
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
    everywhere = everywhere and model.kind == "causal"  # a decoder predicts at its labels only
    spots = micro.tokens.everywhere() if everywhere else micro.tokens
    against = None
    if reference is not None:
        was = reference.module.training
        reference.module.eval()  # a reference has no dropout
        with torch.no_grad():
            against = (reference, forward.label_states(reference, spots))
        reference.module.train(was)
    values = forward.tokens(model, spots, {"value": fn}, reference=against)["value"]
    return Term(values.sum(), f"{micro.stream}.{'seen' if everywhere else 'tokens'}", weight)


def sequence_logp(model: Model, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """Log-prob of each row of each item, SUM over its tokens, and the token counts: `(items, arity)` twice."""
    rows = micro.items * micro.arity
    logp = forward.tokens(model, micro.tokens)["logp"]
    total = reduce.row_sum(logp, micro.tokens.row, rows)
    count = reduce.row_count(micro.tokens.row, rows).to(total)
    return total.view(-1, micro.arity), count.view(-1, micro.arity)


def reference_logp(reference: Model, items: Sequence[ExampleGroup]) -> Tensor:
    """The same for all items under a frozen model, `(items, arity)`, computed once (and cached on disk)."""
    arity = len(items[0])
    total = forward.cached_row_logp(reference, [r for item in items for r in item])
    return total.view(-1, arity).to(next(reference.module.parameters()).dtype)


def group_logp(model: Model, items: Sequence[ExampleGroup]) -> Tensor:
    """The same under any model, not cached, float64."""
    return forward.row_logp(model, [r for item in items for r in item])[0].view(len(items), -1)


def identity(model: Model, data: Any, fit: Fit) -> dict[str, str]:
    """What a checkpoint belongs to: the start's weights, and the data where no method's call says so."""
    if not fit.folder:
        return {}
    return {"weights": model.fingerprint()} | ({} if registry.identity() else {"data": registry.digest(data)})
