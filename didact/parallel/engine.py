"""Training steps over pipeline stages, replicas and tensor-parallel parts, built from torch's own implementations.

Every process gets the whole batch, takes its rows, and divides the SUM of their losses by the label tokens of the
whole; gradients are summed over micro-batches and replicas. So rows of unequal length weigh the same as in one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn import functional as F

from didact.parallel import shards, stages, tensor
from didact.parallel.mesh import Grid

IGNORE = -100
DIVIDE = 1.0  # gradient divisor of FSDP: the loss is divided already
SCHEDULES: dict[str, Any] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Engine:
    """One process's part of a model, trained in step with the others.

    Args:
        module: a causal transformers model, possibly on the meta device; it is not changed.
        grid: of the processes.
        values: returns a whole initial weight by its name.
        micro: rows of a micro-batch.
        device: of this process.
        schedule: of the pipeline.
        precision: bfloat16 for mixed precision; None computes in the dtype of the weights, at least float32.
    """

    def __init__(
        self, module: Any, grid: Grid, values: Callable[[str], Tensor], *, micro: int, device: torch.device,
        schedule: Literal["1f1b", "gpipe"] = "1f1b", precision: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.grid, self.micro, self.device, self.schedule = grid, micro, device, schedule
        self.partial: list[nn.Module] = []
        dtype = next(module.parameters()).dtype
        skeleton = stages.skeleton(module, dtype if dtype.itemsize >= 4 else torch.float32)
        self.stage = stages.Stage(skeleton, grid.stage, grid.pp, precision)
        if grid.tp > 1:
            self.partial = tensor.split(skeleton, grid.of("tp"))
        names = {id(p): name for name, p in self.stage.named().items()}
        for part in (*self.stage.layers, self.stage):  # one by one, so that few are whole at a time
            stages.fill(part, names, values, device)
            if grid.dp > 1:
                fully_shard(part, mesh=grid.of("dp"), reshard_after_forward=grid.pp == 1)
        for part in self.stage.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(DIVIDE)
                part.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
        self.named = self.stage.named()
        self.ends = self._ends()
        self._pipe: tuple[int, Any] = (0, None)
        self._loss_now: Callable[[Tensor, Tensor], Tensor] = self._loss

    def step(self, ids: Tensor, labels: Tensor) -> float:
        """Compute gradients of the mean loss over the label tokens of the same batch `(B, T)` everywhere; return it."""
        count = int((labels != IGNORE).sum())
        total = self.backward(*self.own(ids, labels), count)
        return self.over_all([float(total) if self.grid.last and not self.grid.rank("tp") else 0.0])[0]

    def own(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return this replica's rows, padded by rows without labels to whole micro-batches, at least one per stage."""
        count = max(-(-len(ids) // (self.grid.dp * self.micro)), self.grid.pp if self.grid.pp > 1 else 1) * self.micro
        padding = count * self.grid.dp - len(ids)
        first = self.grid.rank("dp") * count
        padded = (F.pad(ids, (0, 0, 0, padding)), F.pad(labels, (0, 0, 0, padding), value=IGNORE))
        tokens, targets = (x[first : first + count].to(self.device) for x in padded)
        return tokens, targets

    def backward(self, ids: Tensor, labels: Tensor, count: int) -> Tensor:
        """Compute gradients of the own rows' summed loss / `count`; return that loss, 0 if computed elsewhere."""
        parts = len(ids) // self.micro
        losses: list[Tensor] = []

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            return self._loss(logits, target) / count

        with loss_parallel() if self.grid.tp > 1 else contextlib.nullcontext():
            if self.grid.pp == 1:
                for i, (x, y) in enumerate(zip(ids.chunk(parts), labels.chunk(parts), strict=True)):
                    if isinstance(self.stage, FSDPModule):
                        self.stage.set_requires_gradient_sync(i == parts - 1)
                    losses.append(loss(self.stage(x), y))
                    losses[-1].backward()
            elif self.grid.last:
                self._pipeline(parts, ids, loss).step(target=labels, losses=losses, return_outputs=False)
            else:
                self._pipeline(parts, ids, loss).step(*([ids] if self.stage.number == 0 else []), return_outputs=False)
        for p in self.named.values():
            tensor.settle(p)
        if self.partial:
            tensor.complete(self.partial, self.grid.of("tp"))
        if self.ends is not None:
            dist.all_reduce(tensor.local(tensor.gradient(self.named[self.stage.table])), group=self.ends)
        return (
            torch.stack([x.detach().double() for x in losses]).sum() if losses else torch.zeros((), device=self.device)
        )

    def norm(self) -> float:
        """Return the norm of all gradients together, a tied embedding's once."""
        skipped = self.stage.table if self.stage.shares and self.grid.last else None
        gradients = [p.grad for name, p in self.named.items() if p.grad is not None and name != skipped]
        return tensor.norm(gradients, self.grid.dp * self.grid.tp, self.device)

    def clip(self, limit: float) -> float:
        """Clip gradients to a norm of `limit` (0: no clipping); return the norm before."""
        norm = self.norm()
        if 0 < limit < norm + 1e-6:
            for p in self.named.values():
                if p.grad is not None:
                    p.grad.mul_(limit / (norm + 1e-6))
        return norm

    def over_all(self, values: Iterable[float]) -> list[float]:
        """Sum each value over all processes."""
        sums = torch.tensor(list(values), dtype=torch.float64)
        if self.grid.mesh is not None:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
        return [float(v) for v in sums]

    @torch.no_grad()
    def whole(self, of: Callable[[nn.Parameter], Tensor] = lambda p: p) -> dict[str, Tensor]:
        """Gather all weights by name, or `of(weight)`, on the CPU of the first process; the others get nothing."""
        names = [name for name in self.named if not (self.stage.shares and self.grid.last and name == self.stage.table)]
        first = self.grid.mesh is None or dist.get_rank() == 0
        shapes_by_stage: list[Any] = [None] * self.grid.pp
        if self.grid.pp > 1:
            shapes = [(name, self.named[name].shape, self.named[name].dtype) for name in names]
            dist.all_gather_object(shapes_by_stage, shapes, group=self.grid.of("pp").get_group())
        out: dict[str, Tensor] = {}
        for name in names:
            value = shards.whole(of(self.named[name])).detach()
            if self.grid.rank("dp") or self.grid.rank("tp"):
                continue
            if self.stage.number == 0:
                out[name] = value.to("cpu", copy=True)
            else:
                dist.send(value.contiguous(), 0)
        if first:
            for number in range(1, self.grid.pp):
                for name, shape, dtype in shapes_by_stage[number]:
                    buffer = torch.empty(shape, dtype=dtype, device=self.device)
                    dist.recv(buffer, number * self.grid.dp * self.grid.tp)
                    out[name] = buffer.cpu()
        return out if first else {}

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum the loss over a micro-batch's label tokens; logits split over processes are not gathered."""
        flat = logits.flatten(0, 1)
        flat = flat.float() if flat.dtype.itemsize < 4 else flat
        if self.grid.tp > 1:
            flat = tensor.logits(flat, self.grid.of("tp"), self.stage.module.config.vocab_size)
        return shards.whole(F.cross_entropy(flat, target.flatten(), ignore_index=IGNORE, reduction="sum"))

    def _pipeline(self, parts: int, ids: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
        """Return the pipeline schedule for `parts` micro-batches, reused while their number is the same."""
        if self._pipe[0] != parts:
            config, weight = self.stage.module.config, next(iter(self.named.values()))
            tokens = torch.empty((self.micro, ids.shape[1]), dtype=torch.long, device="meta")
            states = torch.empty(
                (*tokens.shape, config.hidden_size), dtype=weight.dtype, device="meta", requires_grad=True
            )
            part = PipelineStage(
                self.stage, self.stage.number, self.grid.pp, self.device,
                input_args=states if self.stage.number else tokens,
                output_args=states,
                group=self.grid.of("pp").get_group(),
            )  # fmt: skip
            built = SCHEDULES[self.schedule](part, parts, loss_fn=lambda y, t: self._loss_now(y, t), scale_grads=False)
            self._pipe = (parts, built)
        self._loss_now = loss
        return self._pipe[1]

    def _ends(self) -> Any:
        """Return the group of the first and the last stage, if both have a copy of a tied embedding."""
        if not (self.stage.tied and self.grid.pp > 1):
            return None
        width, rank = self.grid.dp * self.grid.tp, dist.get_rank()
        groups = {k: dist.new_group([k, k + width * (self.grid.pp - 1)]) for k in range(width)}  # all call, in order
        return groups[rank % width] if self.stage.shares else None
