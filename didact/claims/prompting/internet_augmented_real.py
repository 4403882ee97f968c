"""Internet-augmented's claim on a pre-trained model: SQuAD questions, with passages retrieved from wikitext-2.

The index holds the validation part of wikitext-2, and the short passages that SQuAD's questions were written on; each
seed samples its own questions. The prompt has two others as demonstrations. Search engines are not tested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from didact import prompting
from didact.claims import real, runner
from didact.claims.lab import difference, gate
from didact.infer.ask import Asking
from didact.types import Demo, Passage

ASKED, LONGEST = 8, 90  # questions per seed; most words of a passage
HOW: dict[str, Any] = {
    "paragraphs": 3, "sentences": 4, "samples": 1, "shots": 2, "asking": Asking(max_new_tokens=12, tries=1),
}  # fmt: skip
RULES = ("poe", "direct", "rag", "noisy-channel", "first_passage", "closed_book", "oracle")
Search = Callable[[Sequence[str], int], list[list[Passage]]]


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Exact match by rule, without passages, and with the gold passage alone."""
    rows = [r for r in real.rows("squad_fewshot.jsonl") if len(r["context"].split()) <= LONGEST]
    drawn = [_item(r) for r in random.Random(seed).sample(rows, ASKED + HOW["shots"])]
    items, demos = drawn[:ASKED], drawn[ASKED:]
    articles = [Passage(text=r["text"]) for r in real.rows("wikitext2/valid.txt") if not r["text"].startswith("=")]
    library = [*articles, *(Passage(text=text) for text in dict.fromkeys(r["context"] for r in rows))]
    match = _match(items, demos, seed, passages=library)
    gold = _match(items, demos, seed, search=_search_gold(items), rule="direct", closed_book=False)
    arms = {name.replace("-", "_"): {"match": match.get(name, 0.0)} for name in RULES}  # without answers: 0
    return arms | {"gold": {"match": gold.get("direct", 0.0)}}


def _item(row: dict[str, Any]) -> Demo:
    return Demo(prompt=row["question"], completion=row["answers"][0], answers=row["answers"], context=row["context"])


def _search_gold(items: Sequence[Demo]) -> Search:
    """A search that returns the passage a question was written on."""
    gold = {item.prompt: [Passage(text=str(item.context))] for item in items}
    return lambda questions, k: [gold[q] for q in questions]


def _match(items: list[Demo], demos: list[Demo], seed: int, **where: Any) -> dict[str, float]:
    result = prompting.internet_augmented(real.model(), items, demos, **where, **HOW, keep_leaks=True, seed=seed)
    match: dict[str, float] = result.findings["exact_match"]
    return match


MATCH = "exact match"
CLAIM = runner.Claim(
    method="internet-augmented",
    text=(
        "A pre-trained model that reads the paragraphs nearest to a question, one at a time, and ranks the answers "
        "drawn beside them, answers more questions right than without."
    ),
    run=run,
    gates=(gate("it reads: beside the passage that tells", "gold.match", at_least=0.2, unit=MATCH),),
    tests=(
        difference("passages, reranked, beat none", "poe.match", "closed_book.match", MATCH),
        difference("the nearest passage alone beats none", "first_passage.match", "closed_book.match", MATCH,
                   reported=True),
        difference("poe against the nearest passage", "poe.match", "first_passage.match", MATCH, reported=True),
        difference("poe against direct", "poe.match", "direct.match", MATCH, reported=True),
        difference("noisy channel against direct", "noisy_channel.match", "direct.match", MATCH, reported=True),
        difference("the passage that tells is better still", "gold.match", "poe.match", MATCH, reported=True),
        difference("what a perfect choice would add", "oracle.match", "poe.match", MATCH, reported=True),
    ),
    seeds={**runner.FEWEST, "real": 6},
)  # fmt: skip
