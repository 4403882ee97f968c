"""Whether what a model does not say is gone or hidden: a copy is trained briefly on half of the records, and asked for
the other half.

Knowledge that was only hidden returns with records it was not retrained on. What returns in a model that never knew
them (`gold`) is what the two halves have in common, and no memory.
"""

from __future__ import annotations

import numpy as np

from didact.data import splits
from didact.evaluate import forgetting
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.learn import language, rates
from didact.models.model import Model
from didact.types import Fit, UserError

STEPS, ROWS = 20, 8
FEWEST = 4  # records


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Token accuracy of the half that is not retrained: `relearn_before` the attack, `relearn_after` it, and the
    difference in pairs, `relearn_gain`; `relearn_taught` is that of the half that was, which shows that it works.

    Raises:
        UserError: there are too few records to halve.
    """
    records = list(scoring.of("demo"))
    asked = splits.held_out(splits.keys(records), 0.5) if len(records) >= FEWEST else set()
    if not asked:
        raise UserError(
            f"protocol 'relearn' needs at least {FEWEST} records with different prompts, one half to retrain"
        )
    halves = [r for i, r in enumerate(records) if i not in asked], [records[i] for i in sorted(asked)]
    end = scoring.with_end()
    fit = Fit(
        lr=rates.by_size(model.parameters),
        steps=STEPS,
        rows=min(ROWS, len(halves[0])),
        schedule="constant",
        seed=scoring.seed,
    )
    rows = language.single(forgetting.rows_of(model, halves[0]))
    again = language.train(model, {"records": rows}, language.nll, fit, name="relearn", quiet=True).model
    before, after = (forgetting.answers(m, halves[1], end=end)["accuracy"] for m in (model, again))
    taught = forgetting.answers(again, halves[0], end=end)["accuracy"]
    tokens = f"answer tokens that are the first choice, {forgetting.counted(end)}"
    return {
        "relearn_before": mean_measure(before, "", f"{tokens}, before the attack"),
        "relearn_after": mean_measure(after, "lower", f"{tokens}, after {STEPS} steps on the other half"),
        "relearn_gain": mean_measure(np.subtract(after, before), "lower", "what came back, in pairs of records"),
        "relearn_taught": mean_measure(taught, "", f"{tokens}, of the half that was trained on"),
    }


PROTOCOL = Protocol(
    kind="demo", primary=None, score=score, prompts=lambda scoring: [d.prompt for d in scoring.of("demo")]
)
