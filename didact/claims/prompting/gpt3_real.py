"""GPT-3's claim on a pre-trained model: English words translated into German after K demonstrations.

Each seed samples its words from the thousand most frequent in a bilingual dictionary (XLING); any translation listed
there is right. On the tuning seed (1000) one in eight rarer words was known, whatever the demonstrations. Also
reported: the topics of messages to a bank (banking77), where demonstrations did not help on that seed (.67 with none,
.48 with 12); its labels are long and similar.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from didact import prompting
from didact.claims import real, runner
from didact.claims.lab import difference, gate
from didact.claims.prompting import messages
from didact.types import Demo

WORDS, POOL, FREQUENT = 60, 400, 1000  # test words; words for demonstrations; both among the most frequent
SHOTS = (0, 1, 4, 8)
INTENTS, ASKED, SHOWN = 6, 8, 20  # of banking77: intents per seed; test messages, and example messages, of each


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Accuracy at every K on one seed's words and messages; also after demonstrations with shuffled translations."""
    words = _words(seed)
    translations = [demo.completion for demo in words[WORDS:]]
    random.Random(seed).shuffle(translations)
    mismatched = [Demo(prompt=d.prompt, completion=text) for d, text in zip(words[WORDS:], translations, strict=True)]
    questions, examples = messages.drawn(seed, INTENTS, ASKED, SHOWN)
    return {
        "words": _accuracy(words[:WORDS], words[WORDS:], SHOTS, seed),
        "words dealt anew": _accuracy(words[:WORDS], mismatched, SHOTS[-1:], seed),
        "messages": _accuracy(questions, examples, (0, 12), seed),
    }


def _words(seed: int) -> list[Demo]:
    """Test words, then words for demonstrations, all different."""
    german: dict[str, list[str]] = defaultdict(list)
    for row in real.rows("xling_bli/yacle.train.freq.5k.en-de.tsv"):
        german[row["source"]].append(row["target"])
    drawn = random.Random(seed).sample(list(german)[:FREQUENT], WORDS + POOL)
    return [Demo(prompt=f"English: {w}\nGerman:", completion=german[w][0], answers=german[w]) for w in drawn]


def _accuracy(asked: Sequence[Demo], shown: Sequence[Demo], shots: Sequence[int], seed: int) -> dict[str, float]:
    result = prompting.gpt3(
        real.model(), asked, shown, shots=tuple(shots), metric="normalised", beams=1, max_new_tokens=8, seed=seed,
        separator="\n",
    )  # fmt: skip
    accuracies = {k: result.metrics.get(f"accuracy_{k}_shot", result.metrics["accuracy"]).after for k in shots}
    return {f"k{k}": value for k, value in accuracies.items()}


CLAIM = runner.Claim(
    method="gpt3",
    text=(
        "A pre-trained model puts words into another language better after demonstrations than after none, and better "
        "after eight than after one, without a weight being changed."
    ),
    run=run,
    gates=(gate("it knows some of the words", "words.k8", at_least=0.1, unit="accuracy"),),
    tests=(
        difference("demonstrations help", "words.k8", "words.k0", "accuracy", margin=0.05),
        difference("more help more", "words.k8", "words.k1", "accuracy", margin=0.02),
        difference("that they are right counts", "words.k8", "words dealt anew.k8", "accuracy", reported=True),
        difference("demonstrations help with messages", "messages.k12", "messages.k0", "accuracy", reported=True),
    ),
)
