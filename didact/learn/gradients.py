"""Gradients of a logical batch: micro-batches, processes, and the sums that neither changes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from didact.learn import distributed
from didact.parallel import lockstep
from didact.parallel.sharding import Sharded


class Term(NamedTuple):
    """One loss term of a micro-batch: its sum, the batch size it is divided by, its weight.

    `per` names an entry of the logical batch's `sizes` (`"forget.rows"`, `"retain.tokens"`). A term
    of weight 0 is only logged.
    """

    sum: Tensor
    per: str
    weight: float = 1.0


Terms = Mapping[str, Term]


class Logical(Protocol):
    """What `batch_at(step)` returns: a batch that knows its sizes and can be shared out."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """What terms are divided by, counted over the whole batch."""
        ...

    def shard(self, rank: int, world: int) -> Any:
        """One rank's part, with the sizes of the whole."""
        ...

    def split(self, micro_tokens: int | None) -> Sequence[Any]:
        """Parts that fit in memory; None: do not split."""
        ...


LossFn = Callable[[nn.Module, Any], Terms]


class ExhaustedError(RuntimeError):
    """A process ran out of memory, and all know it."""


def exhausted(error: BaseException) -> bool:
    """Whether it says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | ExhaustedError) or any(
        sign in str(error) for sign in ("can't allocate memory", "out of memory")
    )


def backward(
    module: nn.Module,
    batch: Logical,
    loss_fn: LossFn,
    accelerator: Accelerator,
    micro_tokens: int | None,
    parameters: list[Tensor],
    coupled: bool,
    sharded: Sharded | None,
) -> dict[str, tuple[float, float]]:
    """Gradients of the whole logical batch; `{term: (value, weight)}`.

    Raises:
        ExhaustedError: in all processes, where one of those whose layers are shared ran out of memory.
    """
    world = accelerator.num_processes
    rank, copies = sharded.over.copy if sharded else (accelerator.process_index, world)
    # A coupled loss needs every row on every rank: each computes all of it and counts for a share.
    mine = batch if coupled else batch.shard(rank, copies)
    share = 1 / copies if coupled else 1.0
    tells = sharded is None or sharded.over.tells
    ahead = sharded.over.relay.ahead if sharded and sharded.over.relay else 0
    waiting: deque[Tensor] = deque()  # losses whose backward pass is to come
    sums: dict[str, Tensor] = {}
    weights: dict[str, float] = {}

    def run(micro: Any, counts: int) -> Terms:
        with accelerator.autocast():
            given = module, micro.to(accelerator.device)
            made = sharded(loss_fn, *given) if sharded else loss_fn(*given)
        terms: Terms = {} if isinstance(made, Tensor) else made
        if isinstance(made, Tensor):  # a stage that the states have left
            waiting.append(made)
        elif parts := [t.weight * t.sum / batch.sizes[t.per] for t in terms.values() if t.weight]:
            waiting.append(torch.stack(parts).sum() * share * counts)
        if len(waiting) > ahead:
            waiting.popleft().backward()
        return terms

    micros, short = mine.split(micro_tokens), False
    for micro, counts in _in_step(micros, batch, micro_tokens) if sharded and not coupled else [(m, 1) for m in micros]:
        if short:
            run(_least(batch, micro.stream), 0)
            continue
        since = lockstep.issued() if sharded else {}
        try:
            terms = run(micro, counts)
        except RuntimeError as error:
            if sharded is None or not sharded.over.alone or coupled or not exhausted(error):
                raise
            short = True
        if short:  # after the handler, which holds what the failed pass had made
            assert sharded is not None
            with lockstep.behind(sharded.root, since):
                run(_least(batch, micro.stream), 0)
        for name, t in terms.items() if counts and tells and not short else ():
            sums[name] = (
                sums.get(name, torch.zeros((), dtype=torch.float64))
                + share * t.sum.detach().double().cpu() / batch.sizes[t.per]
            )
            weights[name] = t.weight
    while waiting:
        waiting.popleft().backward()
    if sharded:
        sharded.settle()
    if world > 1:
        _all_reduce([] if sharded else parameters, sums, weights, short)
    return {name: (float(value), weights[name]) for name, value in sums.items()}


def clip(named: Mapping[str, Tensor], limit: float, sharded: Sharded | None) -> float:
    """Shrink gradients to a norm of `limit` at most (0: leave them); the norm they had."""
    most = limit if limit > 0 else math.inf
    if sharded is None:
        return float(torch.nn.utils.clip_grad_norm_([p for p in named.values() if p.grad is not None], most))
    grads = {n: p.grad for n, p in named.items() if p.grad is not None}
    norm = sharded.norm(grads)
    for grad in grads.values() if norm + 1e-6 > most else ():
        grad.mul_(most / (norm + 1e-6))
    return norm


def alike(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups parted so that all of one lie over the same processes, as optimizers want them."""
    parted = []
    for group in groups:
        meshes: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            meshes.setdefault(getattr(p, "device_mesh", None), []).append(p)
        parted += [{**group, "params": ps} for ps in meshes.values()]
    return parted


def _in_step(micros: Sequence[Any], batch: Logical, micro_tokens: int | None) -> list[tuple[Any, int]]:
    """A process's micro-batches stream by stream, and with fillers that count 0 as many as every other process has.

    Layers are gathered from all processes whenever one runs them: each must run them as often, in the same order.
    """
    mine: dict[str, list[tuple[Any, int]]] = {}
    for micro in micros:
        mine.setdefault(micro.stream, []).append((micro, 1))
    many = distributed.joined([{stream: len(own) for stream, own in mine.items()}])
    most = {stream: max(theirs.get(stream, 0) for theirs in many) for stream in sorted(set().union(*many))}
    short = [stream for stream, count in most.items() if not mine.get(stream) and count]
    spare = {m.stream: m for m in batch.split(micro_tokens)} if short else {}
    order = []
    for stream, count in most.items():
        own = mine.get(stream, [])
        filler = own[-1][0] if own else spare[stream]
        order += own + [(filler, 0)] * (count - len(own))
    return order


def _least(batch: Any, stream: str) -> Any:
    """The smallest micro-batch that can be made of a stream."""
    return min((m for m in batch.split(1) if m.stream == stream), key=lambda m: m.tokens.input_ids.numel())


def _all_reduce(parameters: list[Tensor], sums: dict[str, Tensor], weights: dict[str, float], short: bool) -> None:
    """Sum gradients and logged terms over ranks. Sums, not means: each term is divided by the whole batch already.

    Raises:
        ExhaustedError: one of them is `short` of memory.
    """
    import torch.distributed as dist

    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (sums, weights, short))
    if ranks := [rank for rank, theirs in enumerate(gathered) if theirs[2]]:
        raise ExhaustedError(f"out of memory in process {', '.join(map(str, ranks))}")
    total: dict[str, Tensor] = {}
    for theirs, theirs_weights, _ in gathered:
        weights.update(theirs_weights)
        for name, value in theirs.items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value
    sums.clear()
    sums.update(total)
