"""How likely answers are that were judged bad, and those judged good."""

from __future__ import annotations

from typing import Any

import numpy as np

from didact.data import encode
from didact.evaluate import forgetting
from didact.evaluate.measures import Better, Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.models.model import Model


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`bad_nll` and, if some are labelled true, `good_nll`: nats a token, averaged over records.

    With their end token if the start model ends its answers, else without; the other way under a suffix.
    """
    out: dict[str, Measure] = {}
    with_end = scoring.with_end()
    sides: tuple[tuple[str, bool, Better], ...] = (("bad_nll", False, "higher"), ("good_nll", True, "lower"))
    for name, label, better in sides:
        if records := [j for j in scoring.of("judged") if bool(j.label) is label]:
            for end, values in sorted(nll(model, records).items(), key=lambda item: item[0] is not with_end):
                text = f"of the {name[:-4]} answers, {forgetting.counted(end)}"
                key = name if end is with_end else f"{name}_{'with' if end else 'without'}_end"
                out[key] = mean_measure(values, better, text, "nats a token")
    return out


def nll(model: Model, records: Any) -> dict[bool, Any]:
    """-log p of each completion, mean over its tokens, `(N,)`: with its end token (True) and without (False)."""
    pairs = [(j.prompt, j.completion) for j in records]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "judged", model.condition)
    return {end: -total / np.maximum(count, 1) for end, (total, count) in forgetting.totals(model, rows).items()}


PROTOCOL = Protocol(
    kind="judged",
    primary="bad_nll",
    score=score,
    prompts=lambda scoring: [j.prompt for j in sorted(scoring.of("judged"), key=lambda j: not j.label)],
    target=lambda judged: judged.completion if judged.label else "",
)
