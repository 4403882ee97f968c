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
        method: its name.
        tier: how much is measured.
        sabotage: also break the method.
        scoreboard: the folder of cards.
        folder: keeps every finished seed.
        workers: processes of this machine that measure seeds.
        on: a Ray cluster that does; its nodes share `folder`.
        gpus: what a seed takes there.

    Raises:
        UserError: there is no such claim, or it cannot be spread so.
    """
    launch.alone("claim")
    spreading.check(workers, on, gpus)
    if on and not folder:
        raise UserError(f"--on {on}: give a folder that its nodes share, where seeds are kept: --keep DIR")
    catalogue.entry(method)
    if tier != "smoke":
        runner.place(method, scoreboard, tier)  # before any work
    found = runner.load(method, tier)
    with tempfile.TemporaryDirectory() as passing:
        keep = folder or (passing if workers > 1 else None)
        if keep and (workers > 1 or on):
            _measured(runner.jobs(found, tier, sabotage, keep), keep, workers, on, gpus)
        card = runner.run(found, tier, sabotage, keep)
    if tier != "smoke":
        runner.write(card, scoreboard)
    return card


def doer(_: None) -> spreading.Doer:
    """Make ready, in another process, for seeds of claims."""
    return runner.do


def _measured(jobs: list[runner.Job], keep: str, *how: Any) -> None:
    """Have seeds measured elsewhere; what is kept already is not measured again."""
    folders.enter(keep, "claim")
    with spreading.elsewhere(doer, None, Path(keep), *how) as others:
        assert others
        for count, (job, _) in enumerate(others(jobs), 1):
            print(f"claim {count} of {len(jobs)}: {job.name}", file=sys.stderr, flush=True)
