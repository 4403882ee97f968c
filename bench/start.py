"""Start-up arms: the time the command line takes before it does any work."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from bench import problems


def command(words: list[str]) -> dict[str, Any]:
    """Time a command: the best of five runs."""

    def run_once() -> float:
        result = problems.measured(lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True), 1)
        return float(result["seconds"])

    best = min(run_once() for _ in range(5))
    return {"seconds": best, "rate": 1 / best, "peak_mib": 0.0, "value": None}
