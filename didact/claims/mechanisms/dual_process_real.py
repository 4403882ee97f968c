"""dual-process on a pre-trained model: parts of speech of English words (Universal Dependencies), from word and place.

Each seed draws its own words of short sentences. Reported, not decided: whose class wins where word and place differ;
a causal model has read the word, and only what stands before the place.
"""

from __future__ import annotations

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import bound, difference, gate
from didact.types import Text

WORDS, LONGEST = 240, 12  # probed, and words of a sentence
CLASSES = ("NOUN", "VERB", "ADJ")


def texts() -> list[Text]:
    """Short tagged sentences."""
    rows = [row for row in real.rows("ud_en.jsonl") if 4 <= len(row["tokens"]) <= LONGEST]
    return [Text(text=row["text"], extra={"tokens": row["tokens"], "upos": row["upos"]}) for row in rows]


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """What probes say at the layer that reads words best, of the model and of an untrained copy."""
    result = mechanisms.dual_process_probe(texts(), real.model(), classes=CLASSES, most=WORDS, seed=seed)
    best = result.findings["best_layer"]
    found = {name: layers[best] for name, layers in result.findings["layers"].items()}
    return {name: {what: one["estimate"] for what, one in of.items()} for name, of in found.items()}


CLAIM = runner.Claim(
    method="dual-process",
    text=(
        "A pre-trained model's states tell the part of speech of a word it never saw from the place alone, better than "
        "those of an untrained copy, and a probe reads words' parts of speech better than a class drawn for each word."
    ),
    run=run,
    gates=(gate("the probe reads words", "model.seen", at_least=0.6, unit="accuracy"),),
    tests=(
        bound("better than the control task", "model.selectivity", 0.05, "accuracy"),
        difference("words that no training had", "model.unseen", "untrained.unseen", "accuracy", margin=0.05),
        difference("the word itself", "model.seen", "untrained.seen", "accuracy", reported=True),
        difference("where they differ the word wins over the place", "model.word", "model.place", "accuracy",
                   reported=True),
    ),
)  # fmt: skip
