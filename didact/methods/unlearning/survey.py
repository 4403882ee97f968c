"""Shared by the survey's methods: their source, and their default training."""

from __future__ import annotations

from typing import Any

from didact.types import Fit

SURVEY: dict[str, Any] = {
    "paper": "Knowledge Unlearning for LLMs: Tasks, Methods, and Challenges",
    "year": 2023,
    "source": "arXiv:2311.15766",
}
UNLEARN = Fit(lr=5e-5, epochs=10, rows=8, schedule="constant")
SPECIALIST = Fit(lr=1e-5, epochs=5, rows=16, schedule="constant")
