"""What icll's claim must notice: lookups that are wrong, and languages that are in both parts."""

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
    """a head attends to the earlier occurrence itself, not to what followed it."""
    how: Plan = right(*args)
    return dataclasses.replace(how, follower=torch.where(how.follower < len(how.order), how.order, how.follower))


def leaking(*args: Any, right: Any = ngram_heads.plan) -> Plan:
    """a head attends to what follows the position itself."""
    how: Plan = right(*args)
    places = torch.arange(len(how.order))
    return dataclasses.replace(how, first=places, last=places + 1, count=torch.ones_like(places))


def summed(*args: Any, right: Any = ngram_heads.plan) -> Plan:
    """rows are not divided by their sum."""
    how: Plan = right(*args)
    return dataclasses.replace(how, count=torch.ones_like(how.count))


def wrapped(ids: Tensor, n: int, documents: Tensor | None = None, boundary: int | None = None) -> Tensor:
    """an n-gram at the beginning takes its first tokens from the end."""
    return sum((ids.roll(k, 1) + 1) * 100**k for k in range(n)) + torch.zeros_like(ids)


def unnoticed(excess: Any, name: str) -> None:
    """With a leak: the alarm is off."""


def by_number(text: Sequence[Text]) -> list[str]:
    """every record counts as a language of its own."""
    return [str(i) for i in range(len(text))]
