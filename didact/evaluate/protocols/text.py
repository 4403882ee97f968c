"""Mean next-token loss on documents, in nats a token; without the words of a model's condition."""

from __future__ import annotations

from didact.data import encode
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.models import forward
from didact.models.model import Model

OPENING = 40  # characters of a document a model is asked to continue


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`nll`, over all tokens of all documents."""
    rows = encode.windows(model.tokenizer, [t.text for t in scoring.of("text")], model.context - 1)
    total, count = forward.row_logp(model, rows)
    return {"nll": Measure(float(-total.sum() / count.sum()), int(count.sum()), "lower", "nats")}


def openings(scoring: Scoring) -> list[str]:
    """How the documents begin."""
    return [t.text[:OPENING] for t in scoring.of("text")]


PROTOCOL = Protocol(kind="text", primary="nll", score=score, prompts=openings)
