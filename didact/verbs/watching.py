"""Scores on held-out records while a model is trained, and the model of the step that scored best."""

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
    """Scores every `every` steps and at the end, off the cost's meter; the numbers stand in the history.

    Args:
        every: steps between two scores.
        used: whose primary measure says which step is best.
        score: the measures of a model.
        start: the model that is trained a copy of.
        folder: where the weights of the best step are kept, which then are the result; None keeps the last.
        metrics: names of the user's own measures, of which the first says which step is best.
    """

    def __init__(
        self, every: int, used: protocols.Protocol, score: Callable[[Model], Mapping[str, Measure]], start: Model,
        folder: Path | None, metrics: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.every, self.used, self.score, self.start, self.folder = every, used, score, start, folder
        self.metrics = metrics
        self.best: tuple[float, int] | None = None
        self.first = os.environ.get("RANK", "0") == "0"  # of several processes one tells and writes

    def after(self, step: Step) -> None:
        """Score where it is time."""
        if (step.step + 1) % self.every == 0 or step.step + 1 == step.steps:
            self._look(step)

    def end(self, step: Step) -> None:
        """Bring the best step's weights back, and begin anew: another phase has a best step of its own."""
        if self.folder and self.best and self.best[1] != step.step + 1:
            weights = load_file(self.folder / BEST)
            step.put(weights)
            self._tell(f"didact: the result is the model of step {self.best[1]}, which scored best")
        self.best = None

    def state(self) -> Any:
        """The best so far."""
        return self.best

    def restore(self, state: Any) -> None:
        """Take it back."""
        self.best = None if state is None else (state[0], state[1])

    def _look(self, step: Step) -> None:
        judges = "SequenceClassification" in type(step.module).__name__  # a reward model, of a phase or as the result
        if judges and self.used.kind != "preference":
            return
        was, model = step.module.training, self.start.around(step.module)
        if judges:
            model.kind = "encoder"
        with cost.unmetered():
            found = self.score(model)
        step.module.train(was)
        step.log |= {f"held_out_{name}": measure.value for name, measure in found.items()}
        if (name := protocols.leading(self.used, found, self.metrics)) is None:
            return
        value, done = found[name].value, step.step + 1
        sign = -1.0 if found[name].better == "lower" else 1.0
        better = self.best is None or sign * value > sign * self.best[0]
        self._tell(f"step {done} of {step.steps}: {name} {value:.4g}{', the best so far' if better else ''}")
        if better:
            self.best = value, done
            kept = step.weights() if self.folder else {}
            if self.folder and self.first:
                with files.new_file(self.folder / BEST) as beside:
                    save_file(kept, beside)

    def _tell(self, text: str) -> None:
        if self.first:
            print(text, file=sys.stderr)


def check(every: int | None, keep_best: bool, entry: Mapping[str, Any], takes: set[str]) -> None:
    """Refuse what cannot be watched.

    Raises:
        UserError: the method has no hooks or no records to score on, or there is nothing to choose the best by.
    """
    if keep_best and not every:
        raise UserError("--keep-best goes with --evaluate-every N: the best is one of the steps that were scored")
    if every is not None and every < 1:
        raise UserError(f"--evaluate-every {every}: must be 1 or more")
    if every and ("hooks" not in takes or not entry["protocol"]):
        raise UserError(f"--evaluate-every: {entry['name']} trains nothing that can be scored on the way")
