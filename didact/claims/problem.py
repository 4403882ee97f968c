"""A method's embedded example: what `didact run METHOD` uses when it is given no model and no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from didact.models.model import Model
from didact.types import LM, Record


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Model, records by parameter, and the options that differ from the paper's at this size (the run prints them).

    `protocol` holds what scoring needs besides: a gold model, held-out records. Where no model that trains in a minute
    could do the task of a procedure, `model` is a hand-written rule that can, and its name says so.
    """

    model: Model | LM | None = None
    data: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
