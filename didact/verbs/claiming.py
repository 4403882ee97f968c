"""`didact claim`: whether a paper's central claim holds here."""

from __future__ import annotations

from typing import Any

from didact import catalogue
from didact.claims import runner
from didact.parallel import launch


def claim(
    method: str, tier: runner.Tier, sabotage: bool, scoreboard: str = "scoreboard", folder: str | None = None
) -> dict[str, Any]:
    """Test a paper's claim; quick and full tiers are written to the scoreboard."""
    launch.alone("claim")
    catalogue.entry(method)
    if tier != "smoke":
        runner.place(method, scoreboard, tier)  # before any work
    card = runner.run(runner.load(method, tier), tier, sabotage, folder)
    if tier != "smoke":
        runner.write(card, scoreboard)
    return card
