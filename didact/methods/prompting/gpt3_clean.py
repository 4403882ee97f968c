"""GPT-3's training data filter: test items, near duplicates and low-quality documents (Brown et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge

from didact.bounds import Count, Share, Whole
from didact.data import contamination
from didact.registry import method
from didact.types import Demo, Metric, Record, Result, Text, UserError


@method(
    "gpt3.clean",
    paper="Language Models are Few-Shot Learners",
    year=2020,
    source="arXiv:2005.14165",
    gives=("records", "findings"),
    capabilities=(),
)
def gpt3_clean(
    corpus: Sequence[Text],
    test: Sequence[Demo] | None = None,
    *,
    n: Count = 13,
    window: Whole = 200,
    shortest: Count = 200,
    most_pieces: Count = 10,
    common: Count = 10,
    quality: bool = False,
    similar: Share = 0.0,
    hashes: Annotated[int, Ge(2)] = 10,
    seed: int = 0,
) -> Result:
    """Remove test items from training text, before anything is trained on it.

    Every run of n words that a document shares with an item (lower case, no punctuation) is cut out with a window of
    characters on both sides. Runs that occur in more than `common` documents are common phrases and stay. With
    `quality`, documents are first drawn by their `score` s in [0, 1]: kept with probability (2 - s)^-9, which is
    `pareto(9) > 1 - s`. With `similar`, near duplicates of earlier documents are removed next, found by MinHash LSH.

    Args:
        corpus: documents; with `quality` each needs its score.
        test: items to remove from them.
        n: words in an overlap.
        window: characters cut on each side of an overlap.
        shortest: pieces with fewer characters are dropped.
        most_pieces: documents split into more pieces are dropped whole.
        common: runs of words in more documents than this are left in.
        quality: draw documents by their score.
        similar: Jaccard similarity of two documents' runs of 5 words from which the later one is removed; 0 keeps all.
            The paper does not state its value.
        hashes: number of MinHash permutations; with more, fewer duplicates are missed.
        seed: random seed of that draw.

    Returns:
        records, the documents that are left, split where something was cut; findings count what was removed.

    Raises:
        UserError: nothing to do, a document without score.
    """
    if test is None and not quality and not similar:
        raise UserError("nothing to do: give --test to remove its items, --quality to filter by score, or --similar")
    docs = list(corpus)
    findings: dict[str, Any] = {"documents": len(corpus)}
    if quality:
        if missing := [i for i, t in enumerate(corpus, 1) if t.score is None or not 0 <= t.score <= 1]:
            raise UserError(f"corpus: record {missing[0]}: quality needs a score in [0, 1] of every document")
        mask = contamination.quality_filter([t.score or 0.0 for t in corpus], seed)
        docs = [t for t, keep in zip(corpus, mask, strict=True) if keep]
        findings["filtered"] = len(corpus) - len(docs)
    if similar:
        originals = contamination.near_duplicates([t.text for t in docs], similar, hashes)
        findings["duplicates"] = sum(at is not None for at in originals)
        docs = [t for t, at in zip(docs, originals, strict=True) if at is None]
    records: list[Record] = list(docs)
    if test is not None:
        items = [f"{r.prompt} {r.completion}" for r in test]
        cleaned = contamination.remove(
            [t.text for t in docs], items, n=n, window=window, shortest=shortest, most_pieces=most_pieces, common=common
        )
        records = [dataclasses.replace(docs[i], text=p) for p, i in zip(cleaned.pieces, cleaned.source, strict=True)]
        findings |= {"collisions": cleaned.collisions, "dropped": len(cleaned.dropped)}
    characters = sum(len(t.text) for t in corpus)
    remaining = sum(len(r.text) for r in records if isinstance(r, Text))
    findings |= {"pieces": len(records), "characters": characters, "characters_left": remaining}
    share = Metric(
        after=remaining / max(1, characters), before=1.0, n=len(corpus), help="characters of the corpus that are left"
    )
    return Result(records=records, findings=findings, metrics={"kept": share})
