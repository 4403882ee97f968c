"""Hooks, which are called around every training step, and the view of the step that they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from didact.learn.masters import Masters
from didact.parallel import shards
from didact.parallel.relay import Relay


@dataclass
class Step:
    """What a hook sees: the module, the step just done (or about to be), its log row and batch, and the optimizer.

    The optimizer updates `masters.of(weight)`, a float32 copy of the weight where weights are narrower.
    """

    module: nn.Module
    step: int
    steps: int
    log: dict[str, Any]
    batch: Any
    optimizer: torch.optim.Optimizer
    masters: Masters
    relay: Relay | None = None

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights, whole and on the CPU; all processes must call this."""
        whole = {n: shards.whole(p.detach()) for n, p in self.masters.named.items()}
        whole = self.relay.joined(whole) if self.relay else whole
        return {n: p.cpu().contiguous().clone() for n, p in whole.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Set the trained weights to `weights`, as returned by the method `weights`."""
        for n, p in self.masters.named.items():
            p.copy_(shards.like(weights[n], p))


class Hook:
    """Override what you need. `after` returning True stops training; `state` is checkpointed.

    Every process calls it. `inside`: the hook edits weights or optimizer state, and needs them whole.
    """

    inside = False

    def before(self, step: Step) -> None:
        """Called before each step."""

    def after(self, step: Step) -> bool | None:
        """Called after each step; True stops."""

    def end(self, step: Step) -> None:
        """Called after the last step of a phase, before its last checkpoint."""

    def release(self) -> None:
        """Called when training stops, however it stops: undo temporary changes of a step."""

    def state(self) -> Any:
        """Return JSON state for `restore`."""

    def restore(self, state: Any) -> None:
        """Restore what `state` returned."""


class StopWhen(Hook):
    """Stops training after the first step of which `rule(step)` is true."""

    def __init__(self, rule: Callable[[Step], bool]) -> None:
        self.rule = rule

    def after(self, step: Step) -> bool:
        """Ask the rule."""
        return self.rule(step)


class every(Hook):  # noqa: N801  (reads as a verb where it is used)
    """Call `look(step) -> dict` before training, every `steps` steps and at the end; rows are in `.rows`."""

    def __init__(self, steps: int, look: Callable[[Step], dict[str, Any]]) -> None:
        self.steps, self.look = steps, look
        self.rows: list[dict[str, Any]] = []

    def before(self, step: Step) -> None:
        """Look once before training."""
        if step.step == 0 and not self.rows:
            self._record(step, 0)

    def after(self, step: Step) -> None:
        """Look every `steps` steps and at the end."""
        steps_done = step.step + 1
        if steps_done % self.steps == 0 or steps_done == step.steps:
            self._record(step, steps_done)

    def state(self) -> Any:
        """The rows so far."""
        return self.rows

    def restore(self, state: Any) -> None:
        """Restore the rows."""
        self.rows = state

    def _record(self, step: Step, steps_done: int) -> None:
        was_training = step.module.training
        step.module.eval()
        with torch.no_grad():
            self.rows.append({"step": steps_done, **self.look(step)})
        step.module.train(was_training)


class NoDropout(Hook):
    """Trains without dropout: the log-probs of the model and of its frozen copy then agree where the weights do."""

    def before(self, step: Step) -> None:
        """Switch to evaluation mode, which in language models differs by dropout alone."""
        step.module.eval()
