"""Pipeline parallelism for any loss: states are sent from stage to stage forward, and gradients backward.

torch's own schedules take micro-batches of one shape and a loss of the last stage's output alone. Here a method's loss
runs on every stage until the states leave it, and on the last one to its end: all stages have the micro-batch, so that
each knows the shape of what it receives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from didact.errors import UserError


class StatesSent(Exception):  # noqa: N818  (not an error)
    """The states have been sent on: the rest of the loss is computed on the last stage."""

    def __init__(self, end: Tensor) -> None:
        super().__init__()
        self.end = end


class Relay:
    """One process's place in a pipeline of `count` stages of `width` processes; the constructor is collective.

    States and gradients use separate groups: on one, a send of states would wait for a receive of gradients.
    """

    def __init__(self, count: int, width: int, name: str) -> None:
        self.number, column = divmod(dist.get_rank(), width)
        self.count, self.width, self.name = count, width, name
        columns = [[k + stage * width for stage in range(count)] for k in range(width)]
        kinds = columns, columns, [[line[0], line[-1]] for line in columns]
        groups = [[dist.new_group(ranks) for ranks in kind][column] for kind in kinds]  # all processes, same order
        self.forth, self.back, self.ends = groups
        self.passes: int | None = None  # forward passes of the current micro-batch; None outside of a loss
        self.sent: dict[int, deque[tuple[Any, Tensor]]] = {1: deque(), -1: deque()}

    @property
    def last(self) -> bool:
        """Whether this is the last stage, which computes losses."""
        return self.number == self.count - 1

    @property
    def ahead(self) -> int:
        """Micro-batches whose backward pass may be pending when the next one's forward pass begins (1F1B)."""
        return self.count - 1 - self.number

    def run(self, compute: Callable[..., Any], *args: Any) -> Any:
        """Return `compute(*args)` on the last stage; on others a tensor to start its backward pass from."""
        self.passes = 0
        try:
            return compute(*args)
        except StatesSent as stopped:
            return stopped.end
        finally:
            self.passes = None

    def enter(self) -> None:
        """Count a run of the body.

        Raises:
            UserError: it is outside of a loss, or the second within one.
        """
        if self.passes is None:
            raise UserError(
                f"parallel = {self.name}: the model is run outside of the training loss, but every process only "
                "has one stage: give 1 stage"
            )
        self.passes += 1
        if self.passes > 1:
            raise UserError(f"parallel = {self.name}: this loss runs the model twice on a micro-batch: give 1 stage")

    def send(self, tensor: Tensor, by: int) -> None:
        """Send to the next stage (1) or the one before (-1), without waiting."""
        tensor = tensor.detach().contiguous()
        group = self.forth if by > 0 else self.back
        if len(self.sent[by]) > 2 * self.count:  # the order of passes allows no more in flight
            self.sent[by].popleft()[0].wait()
        self.sent[by].append((dist.isend(tensor, dist.get_rank() + by * self.width, group=group), tensor))

    def receive(self, shape: torch.Size, dtype: torch.dtype, device: torch.device, by: int) -> Tensor:
        """Receive from the stage before (1) or the next one (-1)."""
        buffer = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(buffer, dist.get_rank() - by * self.width, group=self.forth if by > 0 else self.back)
        return buffer

    def wait(self) -> None:
        """Wait until everything sent has arrived."""
        for queue in self.sent.values():
            while queue:
                queue.popleft()[0].wait()

    def joined(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather every stage's whole tensors, by name: all processes must call it."""
        shapes: list[Any] = [None] * self.count
        dist.all_gather_object(shapes, {n: (t.shape, t.dtype) for n, t in own.items()}, group=self.forth)
        device, out = next(iter(own.values())).device, {}
        for stage, stage_shapes in enumerate(shapes):
            for name, (shape, dtype) in stage_shapes.items():
                if name not in out:
                    is_own = stage == self.number
                    out[name] = own[name].contiguous() if is_own else torch.empty(shape, dtype=dtype, device=device)
                    dist.broadcast(out[name], group_src=stage, group=self.forth)
        return out


class Enters(nn.Module):
    """In place of an embedding: receives the states of the stage before, for token ids `(B, T)`.

    If the head is tied, the last stage holds the embedding's weight, by its name in the model.
    """

    def __init__(self, relay: Relay, hidden: int, like: Tensor, weight: nn.Parameter | None) -> None:
        super().__init__()
        self.relay, self.hidden, self.dtype = relay, hidden, like.dtype
        if weight is not None:
            self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """Wait for the states and return them."""
        self.relay.enter()
        shape = torch.Size((*ids.shape, self.hidden))
        start = torch.zeros((), device=ids.device, requires_grad=True)  # so that backward reaches this
        states: Tensor = _Receive.apply(start, self.relay, shape, self.dtype)
        return states


class Leaves(nn.Module):
    """In place of the last norm: sends the states to the next stage."""

    def __init__(self, relay: Relay, like: Tensor) -> None:
        super().__init__()
        self.relay, self.dtype = relay, like.dtype

    def forward(self, states: Tensor) -> Tensor:
        """Send the states; raises `Left`."""
        if self.relay.number == 0:
            self.relay.enter()
        end: Tensor = _Send.apply(states.to(self.dtype), self.relay)
        raise StatesSent(end)


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start: Tensor, relay: Relay, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        ctx.relay = relay
        return relay.receive(shape, dtype, start.device, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.relay.send(grads[0], -1)
        return torch.zeros((), device=grads[0].device), None, None, None


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, relay: Relay) -> Tensor:
        ctx.relay, ctx.like = relay, (states.shape, states.dtype, states.device)
        relay.send(states, 1)
        return torch.zeros((), device=states.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.relay.receive(*ctx.like, -1), None
