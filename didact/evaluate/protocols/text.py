"""Mean next-token loss on documents, in nats a token, without a model's condition in the prompt."""

from __future__ import annotations

import math
from typing import Any

from didact.data import encode
from didact.evaluate import general
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.models import forward
from didact.models.model import Model
from didact.types import LM

OPENING = 40  # characters of a document a model is asked to continue


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`nll`, over all tokens of all documents."""
    rows = encode.windows(model.tokenizer, [t.text for t in scoring.of("text")], model.context - 1)
    total, count = forward.row_logp(model, rows)
    return {"nll": Measure(float(-total.sum() / count.sum()), int(count.sum()), "lower", "nats")}


def score_lm(lm: LM, scoring: Scoring) -> dict[str, Measure]:
    """`bits_per_character` over documents: comparable between tokenizers."""
    local: Any = lm
    texts = [t.text for t in scoring.of("text") if t.text]
    logp, _ = general.text_logp(local.model, texts)
    mean = sum(map(len, texts)) / len(texts)  # makes the mean over documents total bits over total characters
    bits = [-value / math.log(2) / mean for value in logp]
    return {"bits_per_character": mean_measure(bits, "lower", "log2-loss of a document a character", "bits")}


def openings(scoring: Scoring) -> list[str]:
    """The beginnings of the documents."""
    return [t.text[:OPENING] for t in scoring.of("text")]


PROTOCOL = Protocol(
    kind="text",
    primary="nll",
    score=score,
    prompts=openings,
    lm_score=score_lm,
    lm_primary="bits_per_character",
    lm_capability="logits",
)
