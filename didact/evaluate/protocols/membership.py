"""Membership inference: attacks that distinguish training records from records that a model never saw.

AUC of min-k log-probs (Shi et al., 2024), of the loss (Yeom et al., 2018), of the loss over the text's compressed size
and of the loss minus the start model's (Carlini et al., 2021). Without memorisation the AUC is .5 if the files differ
in nothing else, which `membership_blind` tests: an attack on words alone, without any model (Das et al., 2024).
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
    """`membership*`, the probability that a record scores above one of `unseen`, with DeLong's interval.

    Raises:
        UserError: there are no unseen records.
    """
    records, unseen = scoring.records.get("demo"), scoring.records.get("unseen")
    if not records or not unseen:
        raise UserError("protocol 'membership' needs records of the same sort that no model saw: --unseen FILE")
    end, sets = scoring.with_end(), (records, unseen)

    def attacks(target: Model, rows: Sequence[Demo]) -> dict[str, Array]:
        values = forgetting.answers(target, rows, end=end)
        logp = np.log(np.maximum(values["probability"], 1e-300))
        size = np.array([len(zlib.compress(r.completion.encode())) for r in rows])
        return {"membership": values["min_k"], "membership_loss": logp, "membership_zlib": logp / size}

    by_set = [attacks(model, rows) for rows in sets]
    if model is not scoring.start:
        before = scoring.once("membership of the start", lambda: [attacks(scoring.start, rows) for rows in sets])
        for own, start in zip(by_set, before, strict=True):
            own["membership_reference"] = own["membership_loss"] - start["membership_loss"]
    out = {name: _auc(by_set[0][name], by_set[1][name], HELP[name]) for name in by_set[0]}
    blind = scoring.once("membership without a model", lambda: _blind(*sets))
    return out | {"membership_blind": _auc(*blind, HELP["membership_blind"])}


HELP = {
    "membership": "AUC of the least likely fifth of the tokens, these records against unseen; .5 is no trace",
    "membership_loss": "AUC of the log-prob a token",
    "membership_zlib": "AUC of the log-prob a token over the compressed size",
    "membership_reference": "AUC of the log-prob minus the start model's",
    "membership_blind": "AUC of words alone: where it is not .5, the files differ by more than membership",
}


def _auc(members: Array, unseen: Array, text: str) -> Measure:
    auc = statistics.auc(members, unseen)
    return Measure(auc.estimate, len(members) + len(unseen), "gold", ci=(auc.low, auc.high), help=text)


def _blind(members: Sequence[Demo], unseen: Sequence[Demo]) -> tuple[Array, Array]:
    """Cross-validated scores of a classifier of words, without any model."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    texts = [f"{r.prompt} {r.completion}" for r in (*members, *unseen)]
    label = np.array([1] * len(members) + [0] * len(unseen))
    folds = min(5, len(members), len(unseen))
    if folds < 2:
        return np.zeros(len(members)), np.zeros(len(unseen))
    x: Any = HashingVectorizer(n_features=1 << 12, alternate_sign=False).transform(texts)
    p = cross_val_predict(LogisticRegression(), x, label, cv=folds, method="decision_function")
    return p[label == 1], p[label == 0]


PROTOCOL = Protocol(
    kind="demo",
    primary=None,
    extra_sets=("unseen",),
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
)
