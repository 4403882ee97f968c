"""Whether a model shows that it was trained on some records: attacks that tell them from records it never saw.

AUC of min-k log-probs (Shi et al., 2024), of the loss (Yeom et al., 2018), of the loss over the text's compressed size
and of the loss less the start model's (Carlini et al., 2021). A model that shows nothing has .5 on files that differ in
nothing else. Whether they do is what `membership_blind` asks: words alone, without any model (Das et al., 2024).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact.evaluate import forgetting, statistics
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.models.model import Model
from didact.types import Demo, UserError

Array = forgetting.Array


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`membership*`, the chance that one of the records scores above one of `unseen`, with DeLong's interval.

    Raises:
        UserError: there are no unseen records.
    """
    records, unseen = scoring.records.get("demo"), scoring.records.get("unseen")
    if not records or not unseen:
        raise UserError("protocol 'membership' needs records of the same sort that no model saw: --unseen FILE")
    end, sets = scoring.with_end(), (records, unseen)

    def attacks(of: Model, rows: Sequence[Demo]) -> dict[str, Array]:
        known = forgetting.answers(of, rows, end=end)
        logp = np.log(np.maximum(known["probability"], 1e-300))
        size = np.array([len(zlib.compress(r.completion.encode())) for r in rows])
        return {"membership": known["min_k"], "membership_loss": logp, "membership_zlib": logp / size}

    found = [attacks(model, rows) for rows in sets]
    if model is not scoring.start:
        before = scoring.once("membership of the start", lambda: [attacks(scoring.start, rows) for rows in sets])
        for now, was in zip(found, before, strict=True):
            now["membership_reference"] = now["membership_loss"] - was["membership_loss"]
    out = {name: _auc(found[0][name], found[1][name], HELP[name]) for name in found[0]}
    blind = scoring.once("membership without a model", lambda: _blind(*sets))
    return out | {"membership_blind": _auc(*blind, HELP["membership_blind"])}


HELP = {
    "membership": "AUC of the least likely fifth of the tokens, these records against unseen; .5 is no trace",
    "membership_loss": "AUC of the log-prob a token",
    "membership_zlib": "AUC of the log-prob a token over the compressed size",
    "membership_reference": "AUC of the log-prob less the start model's",
    "membership_blind": "AUC of words alone: where it is not .5, the files differ by more than membership",
}


def _auc(members: Array, others: Array, text: str) -> Measure:
    found = statistics.auc(members, others)
    return Measure(found.estimate, len(members) + len(others), "gold", ci=(found.low, found.high), help=text)


def _blind(members: Sequence[Demo], others: Sequence[Demo]) -> tuple[Array, Array]:
    """Scores of a classifier of words that saw neither the record nor a model."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    texts = [f"{r.prompt} {r.completion}" for r in (*members, *others)]
    label = np.array([1] * len(members) + [0] * len(others))
    folds = min(5, len(members), len(others))
    if folds < 2:
        return np.zeros(len(members)), np.zeros(len(others))
    x: Any = HashingVectorizer(n_features=1 << 12, alternate_sign=False).transform(texts)
    p = cross_val_predict(LogisticRegression(), x, label, cv=folds, method="decision_function")
    return p[label == 1], p[label == 0]


PROTOCOL = Protocol(
    kind="demo",
    primary=None,
    beside=("unseen",),
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
)
