"""Messages to a bank (banking77) of a few intents as questions with choices, for claims on a pre-trained model."""

from __future__ import annotations

import random

from didact.claims import real
from didact.types import Demo


def drawn(seed: int, intents: int, asked: int, shown: int) -> tuple[list[Demo], list[Demo]]:
    """Test messages (of the test file) and examples (of the training file), `asked` and `shown` of each intent."""
    rng = random.Random(seed)
    test, train = real.rows("banking77/test.csv"), real.rows("banking77/train.csv")
    chosen = rng.sample(sorted({row["category"] for row in test}), intents)
    labels = {intent: intent.replace("_", " ").rstrip("?") for intent in chosen}
    questions, examples = (
        [
            Demo(prompt=f"Message: {row['text'].strip()}\nTopic:", completion=name, choices=list(labels.values()))
            for intent, name in labels.items()
            for row in rng.sample([r for r in rows if r["category"] == intent], count)
        ]
        for rows, count in ((test, asked), (train, shown))
    )
    return questions, examples
