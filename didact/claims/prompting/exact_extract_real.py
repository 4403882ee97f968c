"""Exact-extract's claim on a pre-trained model without tuning: questions about SQuAD passages, sampled for each seed.

Passages have at most `LONGEST` words, so that a seed takes three minutes of one core. An answer ends at a line break:
this model continues after its answers, so with its end token no greedy answer would be a span. On seeds 0 to 2 a fault
kept a blank line from ending a greedy answer, and none was a span; the claim is tested on other seeds, from `FRESH` on.
"""

from __future__ import annotations

import random

from didact import prompting
from didact.claims import real, runner
from didact.claims.lab import bound, difference, gate
from didact.types import QA, Result

ASKED, LONGEST = 16, 100  # questions per seed; most words of a passage
FRESH = 100  # added to test seeds


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """The method as users run it, on one seed's sample of questions."""
    rows = [
        r for r in real.rows("squad_fewshot.jsonl") if r["split"] == "eval" and len(r["context"].split()) <= LONGEST
    ]
    drawn = random.Random(seed + FRESH).sample(rows, ASKED)
    result: Result = prompting.exact_extract(
        real.model(),
        [QA(context=r["context"], question=r["question"], answers=r["answers"]) for r in drawn],
        end="newline",
    )
    return {"untuned": {name: metric.after for name, metric in result.metrics.items()}}


CLAIM = runner.Claim(
    method="exact-extract",
    text=(
        "Asked without any tuning, a pre-trained model's greedy answers to questions about a passage are often no span "
        "of it, and the likeliest spans are better answers (F1)."
    ),
    run=run,
    gates=(gate("the model can answer at all", "untuned.exact_f1", at_least=20.0, unit="F1 %"),),
    tests=(
        difference("exact beats greedy untuned", "untuned.exact_f1", "untuned.greedy_f1", "% points"),
        bound("greedy answers are often no span", "untuned.extractiveness", 80.0, "%", less=True),
        difference("exact beats greedy along the passage", "untuned.exact_f1", "untuned.constrained_greedy_f1",
                   "% points", reported=True),
        bound("greedy is seldom the likeliest span", "untuned.optimality", 80.0, "%", less=True, reported=True),
    ),
)  # fmt: skip
