"""How likely answers are that were found bad, and those found good."""

from __future__ import annotations

from typing import Any

from didact.data import encode
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.models import forward
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`bad_nll` and, where some are labelled true, `good_nll`: nats a token, averaged over records."""
    out = {}
    for name, label, better in (("bad_nll", False, "higher"), ("good_nll", True, "lower")):
        if records := [j for j in scoring.of("judged") if bool(j.label) is label]:
            text = f"of the {name[:-4]} answers"
            out[name] = mean_measure(nll(model, records), better, text, "nats a token")  # type: ignore[arg-type]
    return out


def nll(model: Model, records: Any) -> Any:
    """-log p of each completion, mean over its tokens, `(N,)`."""
    pairs = [(j.prompt, j.completion) for j in records]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "judged", model.condition)
    total, count = forward.row_logp(model, rows)
    return (-total / count).numpy()


PROTOCOL = Protocol(
    kind="judged",
    primary="bad_nll",
    score=score,
    prompts=lambda scoring: [j.prompt for j in sorted(scoring.of("judged"), key=lambda j: not j.label)],
    wanted=lambda judged: judged.completion if judged.label else "",
)
