"""Sabotages that icll's claim must detect: wrong lookups, and languages in both training and held-out data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from didact.models import ngram_heads
from didact.models.ngram_heads import Plan
from didact.types import Text


def unshifted(*args: Any, right: Any = ngram_heads.plan) -> Plan:
    """Let a head attend to the earlier occurrence itself, not to what followed it."""
    plan: Plan = right(*args)
    return dataclasses.replace(plan, follower=torch.where(plan.follower < len(plan.order), plan.order, plan.follower))


def leaking(*args: Any, right: Any = ngram_heads.plan) -> Plan:
    """Let a head attend to what follows the position itself."""
    plan: Plan = right(*args)
    places = torch.arange(len(plan.order))
    return dataclasses.replace(plan, first=places, last=places + 1, count=torch.ones_like(places))


def summed(*args: Any, right: Any = ngram_heads.plan) -> Plan:
    """Do not divide the rows by their sum."""
    plan: Plan = right(*args)
    return dataclasses.replace(plan, count=torch.ones_like(plan.count))


def wrapped(ids: Tensor, n: int, documents: Tensor | None = None, boundary: int | None = None) -> Tensor:
    """Let an n-gram at the beginning take its first tokens from the end."""
    return sum((ids.roll(k, 1) + 1) * 100**k for k in range(n)) + torch.zeros_like(ids)


def unnoticed(excess: Any, name: str) -> None:
    """Skip the check for leaks."""


def by_number(text: Sequence[Text]) -> list[str]:
    """Count every record as another language."""
    return [str(i) for i in range(len(text))]
