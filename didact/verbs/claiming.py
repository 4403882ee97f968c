"""`didact claim`: whether a paper's central claim holds here."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from didact import catalogue, folders
from didact.claims import runner
from didact.parallel import launch
from didact.types import UserError
from didact.verbs import spreading


def claim(
    method: str, tier: runner.Tier, sabotage: bool, scoreboard: str = "scoreboard", folder: str | None = None,
    workers: int = 1, on: str | None = None, gpus: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Test a paper's claim; quick and full tiers are written to the scoreboard.

    Args:
        method: name of the method.
        tier: how much is measured.
        sabotage: also break the method on purpose, which the claim must detect.
        scoreboard: the folder of cards.
        folder: stores every finished seed.
        workers: processes of this machine that measure seeds.
        on: a Ray cluster that measures them; its nodes share `folder`.
        gpus: GPUs that a seed takes there.

    Raises:
        UserError: there is no such claim, or the work cannot be distributed so.
    """
    launch.alone("claim")
    spreading.check(workers, on, gpus)
    if on and not folder:
        raise UserError(f"--on {on}: give a folder that its nodes share, for finished seeds: --keep DIR")
    catalogue.entry(method)
    if tier != "smoke":
        runner.place(method, scoreboard, tier)  # before any work
    definition = runner.load(method, tier)
    with tempfile.TemporaryDirectory() as temporary:
        keep = folder or (temporary if workers > 1 else None)
        if keep and (workers > 1 or on):
            _measure(runner.jobs(definition, tier, sabotage, keep), keep, workers, on, gpus)
        card = runner.run(definition, tier, sabotage, keep)
    if tier != "smoke":
        runner.write(card, scoreboard)
    return card


def doer(_: None) -> spreading.Doer:
    """Return the function that measures a seed in another process."""
    return runner.do


def _measure(jobs: list[runner.Job], keep: str, *placement: Any) -> None:
    """Measure seeds in other processes; those already in `keep` are not measured again."""
    folders.enter(keep, "claim")
    with spreading.worker_pool(doer, None, Path(keep), *placement) as dispatch:
        assert dispatch
        for count, (job, _) in enumerate(dispatch(jobs), 1):
            print(f"claim {count} of {len(jobs)}: {job.name}", file=sys.stderr, flush=True)
