"""dual-process on a pre-trained model: parts of speech of English words (Universal Dependencies), from word and place.

Each seed draws its own words of short sentences. Reported, not decided: whose class wins where word and place differ;
a causal model has read the word, and only what stands before the place. The first form of this claim asked the probes
of seen words about unseen ones, at the one layer that reads seen words best; it was undecided on seeds 0 to 2 (.39
against .43 in an untrained copy), for there the states are those of the word. So unseen words have probes of their own
now, all layers count, and the seeds are others.
"""

from __future__ import annotations

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import bound, difference, gate, mean
from didact.types import Text

WORDS, LONGEST, FIRST = 240, 12, 100  # probed, words of a sentence, and the first seed
CLASSES = ("NOUN", "VERB", "ADJ")


def texts() -> list[Text]:
    """Short tagged sentences."""
    rows = [row for row in real.rows("ud_en.jsonl") if 4 <= len(row["tokens"]) <= LONGEST]
    return [Text(text=row["text"], extra={"tokens": row["tokens"], "upos": row["upos"]}) for row in rows]


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """What probes say, on the mean over all layers above the embeddings, of the model and of an untrained copy."""
    result = mechanisms.dual_process_probe(texts(), real.model(), classes=CLASSES, most=WORDS, seed=seed + FIRST)
    return {
        name: {what: mean(layer[what]["estimate"] for n, layer in layers.items() if n) for what in layers[0]}
        for name, layers in result.findings["layers"].items()
    }


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
        difference("words that no training had", "model.trained_unseen", "untrained.trained_unseen", "accuracy",
                   margin=0.05),
        difference("the same, read as seen words are", "model.unseen", "untrained.unseen", "accuracy", reported=True),
        difference("the word itself", "model.seen", "untrained.seen", "accuracy", reported=True),
        difference("where they differ the word wins over the place", "model.word", "model.place", "accuracy",
                   reported=True),
    ),
)  # fmt: skip
