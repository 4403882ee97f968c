"""GPT-3's claim on a pre-trained model: intents of bank customers (banking77), told from K demonstrations.

Each seed draws its own intents and items. Demonstrations whose labels were dealt anew show how much of the gain is the
labels' and how much is the form's.
"""

from __future__ import annotations

import random

from didact import prompting
from didact.claims import real, runner
from didact.claims.lab import difference, gate
from didact.types import Demo, Result

INTENTS, ASKED, POOL = 6, 8, 20  # a draw's intents; items asked, and demonstrations to draw from, of each
SHOTS = (0, 1, 4, 12)


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Accuracy at every K of one draw, with right labels and with labels dealt anew."""
    draw = random.Random(seed)
    test, train = real.rows("banking77/test.csv"), real.rows("banking77/train.csv")
    intents = draw.sample(sorted({row["category"] for row in test}), INTENTS)
    choices = [intent.replace("_", " ").rstrip("?") for intent in intents]
    asked, shown = (
        [
            Demo(prompt=f"Message: {row['text'].strip()}\nTopic:", completion=name, choices=choices)
            for intent, name in zip(intents, choices, strict=True)
            for row in draw.sample([r for r in rows if r["category"] == intent], count)
        ]
        for rows, count in ((test, ASKED), (train, POOL))
    )
    labels = [demo.completion for demo in shown]
    draw.shuffle(labels)
    dealt = [Demo(prompt=d.prompt, completion=name, choices=choices) for d, name in zip(shown, labels, strict=True)]
    return {"right labels": _accuracy(asked, shown, seed), "dealt anew": _accuracy(asked, dealt, seed)}


def _accuracy(asked: list[Demo], shown: list[Demo], seed: int) -> dict[str, float]:
    result: Result = prompting.gpt3(real.model(), asked, shown, shots=SHOTS, seed=seed)
    return {f"k{k}": result.metrics[f"accuracy_{k}_shot"].after for k in SHOTS}


CLAIM = runner.Claim(
    method="gpt3",
    text=(
        "A pre-trained model tells the topic of a message better from demonstrations than from none, and better from "
        "12 than from one, without a weight being changed."
    ),
    run=run,
    gates=(gate("it is no guessing", "right labels.k12", at_least=2 / INTENTS, unit="accuracy"),),
    tests=(
        difference("demonstrations help", "right labels.k12", "right labels.k0", "accuracy", margin=0.05),
        difference("more help more", "right labels.k12", "right labels.k1", "accuracy", margin=0.05),
        difference("their labels count", "right labels.k12", "dealt anew.k12", "accuracy", reported=True),
    ),
)
