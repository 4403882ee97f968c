"""Whether a model follows the goal in its prompt, on scored pairs under the goals of both their sides."""

from __future__ import annotations

import dataclasses

from didact.data import goals
from didact.data.goals import Wording
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring, prefer
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`followed`: share of records whose side is likelier under its own goal; a tie is half.

    Goals have the wording and scale of the method's options. Empty if training used implicit scores, without goals.
    """
    options, pairs = scoring.options, scoring.of("preference")
    if options.get("scores") == "implicit":
        return {}
    wording = options.get("wording", Wording())
    scores = goals.scores_of(pairs, wording.attributes)
    span = options.get("span") or (None if options.get("noise") else goals.span_of(scores, wording.scale))
    scaled = goals.on_scale(scores, wording.scale, span, options.get("step", 0.1))
    records = goals.relabelled(pairs, scaled, wording)
    if not records:
        return {}
    margins = prefer.margins(dataclasses.replace(model, condition=None), records)  # the prompts have their goals
    return {"followed": prefer.share(margins, "is likelier under its goal")}


PROTOCOL = Protocol(kind="preference", primary="followed", score=score, target=lambda pair: pair.chosen)
