"""What a result was made with."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

SCHEMA = 1  # of result.json and leaderboard.json


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    return {name: metadata.version(name) for name in ("didact", "torch", "transformers", "peft", "numpy")}


def commit() -> str | None:
    """The revision of the code, where it is run from a checkout."""
    here = str(Path(__file__).parent)
    asked = ["git", "-C", here, "rev-parse", "--short", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
