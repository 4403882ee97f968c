"""Training curves where people already look at them: TensorBoard, or Weights & Biases without a network."""

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
    """A hook that logs what `history.jsonl` has of every step.

    Args:
        kind: `tensorboard` (event files in `folder/tensorboard`) or `wandb` (offline runs in
            `folder/wandb`, which `wandb sync` sends).
        folder: of the run.
        config: what the run is, shown beside its curves; nested values are written as text.

    Raises:
        UserError: the package is not installed.
    """
    if kind not in ("tensorboard", "wandb"):
        raise UserError(f"--track {kind}: use tensorboard or wandb")
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--track {kind}: the package {kind} is missing: pip install didact[track]")
    return Tracker(kind, Path(folder), config)


class Tracker(Hook):
    """Logs every step under its number among all steps this hook has seen, over all phases of a run.

    A resumed run goes on in the same curve: what a killed run logged after its last checkpoint is replaced.
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
        """How many steps are logged, and the name of the run."""
        return {"steps": self.steps, "run": self.run}

    def restore(self, state: Any) -> None:
        """Go on from there."""
        self.steps, self.run = state["steps"], state["run"]

    def _start(self) -> GeneralTracker:
        PartialState()  # trackers ask it which process they are in
        config = {k: v if isinstance(v, str | int | float) else str(files.plain(v)) for k, v in self.config.items()}
        if self.kind == "tensorboard":
            # Events from this step on that an earlier, killed process left are not shown.
            made: Any = TensorBoardTracker("tensorboard", self.folder, purge_step=self.steps)
            made.start()
            made.writer.add_text("config", "".join(f"    {k}: {v}\n" for k, v in config.items()), self.steps)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            how = {"dir": str(self.folder), "mode": "offline", "id": self.run, "resume": "allow" if self.run else None}
            made = WandBTracker("didact", **how, settings={"silent": True, "console": "off"})
            made.start()
            made.store_init_configuration(config)
            self.run = made.run.id
        return made
