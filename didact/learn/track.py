"""Training curves in TensorBoard, or in Weights & Biases without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from didact import files
from didact.learn.fit import Hook, Step
from didact.types import UserError

Kind = Literal["tensorboard", "wandb"]


def tracker(kind: Kind, folder: str | Path, config: Mapping[str, Any]) -> Hook:
    """Return a hook that logs every step's row of `history.jsonl`.

    Args:
        kind: `tensorboard` (event files in `folder/tensorboard`) or `wandb` (offline runs in
            `folder/wandb`, which `wandb sync` sends).
        folder: folder of the run.
        config: description of the run, shown with its curves; nested values are written as text.

    Raises:
        UserError: the package is not installed.
    """
    if kind not in ("tensorboard", "wandb"):
        raise UserError(f"--track {kind}: use tensorboard or wandb")
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--track {kind}: the package {kind} is missing: pip install didact[track]")
    return Tracker(kind, Path(folder), config)


class Tracker(Hook):
    """Logs every step, counted over all phases of a run.

    A resumed run continues the same curve: what a killed run logged after its last checkpoint is replaced.
    """

    def __init__(self, kind: Kind, folder: Path, config: Mapping[str, Any]) -> None:
        self.kind, self.folder, self.config = kind, folder, config
        self.steps = 0
        self.run: str | None = None
        self._open: GeneralTracker | None = None

    def after(self, step: Step) -> None:
        """Log the step's row."""
        self.steps += 1
        if self._open is None:
            self._open = self._start()
        values = {name: value for name, value in step.log.items() if name != "step"}
        self._open.log(values, step=self.steps)

    def state(self) -> Any:
        """Number of logged steps, and the name of the run."""
        return {"steps": self.steps, "run": self.run}

    def restore(self, state: Any) -> None:
        """Continue from a saved state."""
        self.steps, self.run = state["steps"], state["run"]

    def _start(self) -> GeneralTracker:
        PartialState()  # trackers ask it which process they are in
        config = {k: v if isinstance(v, str | int | float) else str(files.plain(v)) for k, v in self.config.items()}
        if self.kind == "tensorboard":
            # Hide events from this step on that an earlier, killed process left.
            started: Any = TensorBoardTracker("tensorboard", self.folder, purge_step=self.steps)
            started.start()
            started.writer.add_text("config", "".join(f"    {k}: {v}\n" for k, v in config.items()), self.steps)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            init = {"dir": str(self.folder), "mode": "offline", "id": self.run, "resume": "allow" if self.run else None}
            started = WandBTracker("didact", **init, settings={"silent": True, "console": "off"})
            started.start()
            started.store_init_configuration(config)
            self.run = started.run.id
        return started
