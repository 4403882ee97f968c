"""Evaluation on held-out records during training, and the model of the best step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from didact import files
from didact.evaluate import protocols
from didact.evaluate.measures import Measure
from didact.learn.fit import Hook, Step
from didact.models import cost
from didact.models.model import Model
from didact.types import UserError

BEST = "best.safetensors"


class Watch(Hook):
    """Evaluate every `every` steps and at the end, outside the cost's count; the numbers go into the history.

    Args:
        every: steps between two evaluations.
        protocol: its primary measure decides which step is best.
        score: returns the measures of a model.
        start: the model of which a copy is trained.
        folder: folder for the weights of the best step, which become the result; with None the last step's do.
        metrics: names of the user's own measures; the first, if any, decides which step is best.
    """

    def __init__(
        self, every: int, protocol: protocols.Protocol, score: Callable[[Model], Mapping[str, Measure]], start: Model,
        folder: Path | None, metrics: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.every, self.protocol, self.score, self.start, self.folder = every, protocol, score, start, folder
        self.metrics = metrics
        self.best: tuple[float, int] | None = None
        self.first = os.environ.get("RANK", "0") == "0"  # of several processes one prints and writes

    def after(self, step: Step) -> None:
        """Evaluate if it is time."""
        if (step.step + 1) % self.every == 0 or step.step + 1 == step.steps:
            self._evaluate(step)

    def end(self, step: Step) -> None:
        """Restore the best step's weights, and reset: each phase of training has its own best step."""
        if self.folder and self.best and self.best[1] != step.step + 1:
            weights = load_file(self.folder / BEST)
            step.put(weights)
            self._print(f"didact: the result is the model of step {self.best[1]}, which scored best")
        self.best = None

    def state(self) -> Any:
        """Return the best value and step so far."""
        return self.best

    def restore(self, state: Any) -> None:
        """Restore what `state` returned."""
        self.best = None if state is None else (state[0], state[1])

    def _evaluate(self, step: Step) -> None:
        is_reward_model = "SequenceClassification" in type(step.module).__name__  # of a phase, or as the result
        if is_reward_model and self.protocol.kind != "preference":
            return
        was_training, model = step.module.training, self.start.around(step.module)
        if is_reward_model:
            model.kind = "encoder"
        with cost.unmetered():
            measures = self.score(model)
        step.module.train(was_training)
        step.log |= {f"held_out_{name}": measure.value for name, measure in measures.items()}
        if (name := protocols.leading(self.protocol, measures, self.metrics)) is None:
            return
        value, number = measures[name].value, step.step + 1
        sign = -1.0 if measures[name].better == "lower" else 1.0
        better = self.best is None or sign * value > sign * self.best[0]
        self._print(f"step {number} of {step.steps}: {name} {value:.4g}{', the best so far' if better else ''}")
        if better:
            self.best = value, number
            weights = step.weights() if self.folder else {}
            if self.folder and self.first:
                with files.new_file(self.folder / BEST) as temporary:
                    save_file(weights, temporary)

    def _print(self, text: str) -> None:
        if self.first:
            print(text, file=sys.stderr)


def check(every: int | None, keep_best: bool, entry: Mapping[str, Any], takes: set[str]) -> None:
    """Check the options for evaluation during training.

    Raises:
        UserError: the method has no hooks or no records to score on, or --keep-best is given without --evaluate-every.
    """
    if keep_best and not every:
        raise UserError("--keep-best needs --evaluate-every N: it keeps the best of the evaluated steps")
    if every is not None and every < 1:
        raise UserError(f"--evaluate-every {every}: must be 1 or more")
    if every and ("hooks" not in takes or not entry["protocol"]):
        raise UserError(f"--evaluate-every: {entry['name']} trains nothing that can be scored during training")
