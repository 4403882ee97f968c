"""Gradients of a logical batch: the same sums however it is split into micro-batches and over processes."""

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
    """What `batch_at(step)` returns: a batch that knows its sizes and can be split."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """The counts that terms are divided by, over the whole batch."""
        ...

    def shard(self, rank: int, world: int) -> Any:
        """One rank's part, with the sizes of the whole."""
        ...

    def split(self, micro_tokens: int | None) -> Sequence[Any]:
        """Parts that fit in memory; None: do not split."""
        ...


LossFn = Callable[[nn.Module, Any], Terms]


class ExhaustedError(RuntimeError):
    """A process ran out of memory; raised in all processes."""


def exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
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
    """Compute the gradients of the whole logical batch; return `{term: (value, weight)}`.

    Raises:
        ExhaustedError: in all processes, where the module is sharded and one of them ran out of memory.
    """
    world = accelerator.num_processes
    rank, copies = sharded.over.copy if sharded else (accelerator.process_index, world)
    # A coupled loss needs every row on every rank: each computes all of it and counts for a share.
    part = batch if coupled else batch.shard(rank, copies)
    share = 1 / copies if coupled else 1.0
    reports = sharded is None or sharded.over.reports
    in_flight = sharded.over.relay.ahead if sharded and sharded.over.relay else 0
    pending: deque[Tensor] = deque()  # losses whose backward pass is to come
    sums: dict[str, Tensor] = {}
    weights: dict[str, float] = {}

    def run(micro: Any, counts: int) -> Terms:
        with accelerator.autocast():
            inputs = module, micro.to(accelerator.device)
            output = sharded(loss_fn, *inputs) if sharded else loss_fn(*inputs)
        terms: Terms = {} if isinstance(output, Tensor) else output
        if isinstance(output, Tensor):  # a pipeline stage before the last, which has no loss terms
            pending.append(output)
        elif parts := [t.weight * t.sum / batch.sizes[t.per] for t in terms.values() if t.weight]:
            pending.append(torch.stack(parts).sum() * share * counts)
        if len(pending) > in_flight:
            pending.popleft().backward()
        return terms

    micros, out_of_memory = part.split(micro_tokens), False
    for micro, counts in _aligned(micros, batch, micro_tokens) if sharded and not coupled else [(m, 1) for m in micros]:
        if out_of_memory:
            run(_smallest(batch, micro.stream), 0)
            continue
        issued = lockstep.issued() if sharded else {}
        try:
            terms = run(micro, counts)
        except RuntimeError as error:
            if sharded is None or not sharded.over.alone or coupled or not exhausted(error):
                raise
            out_of_memory = True
        if out_of_memory:  # outside of the handler, which keeps the tensors of the failed pass alive
            assert sharded is not None
            with lockstep.behind(sharded.root, issued):
                run(_smallest(batch, micro.stream), 0)
        for name, t in terms.items() if counts and reports and not out_of_memory else ():
            sums[name] = (
                sums.get(name, torch.zeros((), dtype=torch.float64))
                + share * t.sum.detach().double().cpu() / batch.sizes[t.per]
            )
            weights[name] = t.weight
    while pending:
        pending.popleft().backward()
    if sharded:
        sharded.settle()
    if world > 1:
        _all_reduce([] if sharded else parameters, sums, weights, out_of_memory)
    return {name: (float(value), weights[name]) for name, value in sums.items()}


def clip(parameters: Mapping[str, Tensor], limit: float, sharded: Sharded | None) -> float:
    """Clip gradients to a norm of `limit` (0: do not clip); return the norm before."""
    max_norm = limit if limit > 0 else math.inf
    if sharded is None:
        return float(torch.nn.utils.clip_grad_norm_([p for p in parameters.values() if p.grad is not None], max_norm))
    grads = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    norm = sharded.norm(grads)
    for grad in grads.values() if norm + 1e-6 > max_norm else ():
        grad.mul_(max_norm / (norm + 1e-6))
    return norm


def split_by_mesh(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split parameter groups so that all tensors of one are on the same device mesh, as optimizers require."""
    split = []
    for group in groups:
        meshes: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            meshes.setdefault(getattr(p, "device_mesh", None), []).append(p)
        split += [{**group, "params": ps} for ps in meshes.values()]
    return split


def _aligned(micros: Sequence[Any], batch: Logical, micro_tokens: int | None) -> list[tuple[Any, int]]:
    """Order micro-batches by stream, each with weight 1, and pad with fillers of weight 0 to equal counts per process.

    Layers are gathered from all processes whenever one runs them: each must run them equally often, in the same order.
    """
    by_stream: dict[str, list[tuple[Any, int]]] = {}
    for micro in micros:
        by_stream.setdefault(micro.stream, []).append((micro, 1))
    ranks = distributed.joined([{stream: len(own) for stream, own in by_stream.items()}])
    longest = {stream: max(rank.get(stream, 0) for rank in ranks) for stream in sorted(set().union(*ranks))}
    missing = [stream for stream, count in longest.items() if not by_stream.get(stream) and count]
    fillers = {m.stream: m for m in batch.split(micro_tokens)} if missing else {}
    order = []
    for stream, count in longest.items():
        own = by_stream.get(stream, [])
        filler = own[-1][0] if own else fillers[stream]
        order += own + [(filler, 0)] * (count - len(own))
    return order


def _smallest(batch: Any, stream: str) -> Any:
    """Return the smallest micro-batch of a stream."""
    return min((m for m in batch.split(1) if m.stream == stream), key=lambda m: m.tokens.input_ids.numel())


def _all_reduce(parameters: list[Tensor], sums: dict[str, Tensor], weights: dict[str, float], short: bool) -> None:
    """Sum gradients and logged terms over ranks. Sums, not means: each term is divided by the whole batch already.

    Raises:
        ExhaustedError: a process is `short` of memory.
    """
    import torch.distributed as dist

    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (sums, weights, short))
    if ranks := [rank for rank, rank_sums in enumerate(gathered) if rank_sums[2]]:
        raise ExhaustedError(f"out of memory in process {', '.join(map(str, ranks))}")
    total: dict[str, Tensor] = {}
    for rank_sums, rank_weights, _ in gathered:
        weights.update(rank_weights)
        for name, value in rank_sums.items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value
    sums.clear()
    sums.update(total)
