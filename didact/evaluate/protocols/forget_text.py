"""Whether a text that must go is still known, and other text still is: mean next-token loss on both."""

from __future__ import annotations

import dataclasses

from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring, text
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`target_nll`, and `general_nll` where there is general text, in nats a token."""
    out = {}
    for name in ("target", "general"):
        if rows := scoring.records.get(name):
            nll = text.score(model, dataclasses.replace(scoring, records={"text": rows}))["nll"]
            better = {"target": "higher", "general": "lower"}[name]
            out[f"{name}_nll"] = dataclasses.replace(nll, better=better, help="loss a token")  # type: ignore[arg-type]
    return out


PROTOCOL = Protocol(kind="text", primary="target_nll", score=score, held_out="general", scored=("target",))
