"""Start-up arms: what the command line takes before it does anything."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from bench import problems


def command(words: list[str]) -> dict[str, Any]:
    """Best of five runs of a command."""

    def once() -> float:
        told = problems.measured(lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True), 1)
        return float(told["seconds"])

    took = min(once() for _ in range(5))
    return {"seconds": took, "rate": 1 / took, "peak_mib": 0.0, "value": None}
