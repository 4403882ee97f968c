"""Versions of the software that made a result."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

SCHEMA = 1  # of result.json and leaderboard.json


def versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    return {name: metadata.version(name) for name in ("didact", "torch", "transformers", "peft", "numpy")}


def commit() -> str | None:
    """Return the revision of the code if it runs from a checkout, else None."""
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
