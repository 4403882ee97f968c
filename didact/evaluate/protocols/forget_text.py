"""Whether a target text is forgotten and general text is not: mean next-token loss on both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring, text
from didact.evaluate.protocols.forget import KEPT
from didact.models.model import Model
from didact.types import Metric


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`target_nll` and, if there is general text, `general_nll`, in nats a token."""
    out = {}
    for name in ("target", "general"):
        if rows := scoring.records.get(name):
            nll = text.score(model, dataclasses.replace(scoring, records={"text": rows}))["nll"]
            better = {"target": "higher", "general": "lower"}[name]
            out[f"{name}_nll"] = dataclasses.replace(nll, better=better, help="loss a token")  # type: ignore[arg-type]
    return out


def warns(metrics: Mapping[str, Metric]) -> list[str]:
    """Warn if the start model knew the target no better than the general text, or if general text was forgotten too."""
    out = []
    target, general = (metrics.get(f"{name}_nll") for name in ("target", "general"))
    if target and general and target.before is not None and general.before is not None:
        if target.before >= general.before:
            out.append(
                "the start model knows the target text no better than the general text (target_nll "
                f"{target.before:.3f}, general_nll {general.before:.3f}): there may be little to forget, and a higher "
                "loss shows little"
            )
        if general.after - general.before > -math.log(KEPT):
            out.append(
                f"the general text went too: its loss rose from {general.before:.3f} to {general.after:.3f} nats a "
                "token: fewer steps, a lower rate or more general text keep more"
            )
    return out


PROTOCOL = Protocol(kind="text", primary="target_nll", score=score, held_out="general", scored=("target",), warns=warns)
