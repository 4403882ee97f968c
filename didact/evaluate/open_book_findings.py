"""Accuracy of open-book answers by rule, against the same model without passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from didact.evaluate.open_book import Outcome, Reader, correct
from didact.infer import rerank
from didact.infer.rerank import RULES, Rule
from didact.types import Demo

RECALL = (1, 2, 5, 10, 20, 50)  # passages


def findings(outcomes: Sequence[Outcome], rule: Rule, weights: Sequence[float]) -> dict[str, Any]:
    """Return shares of correctly answered questions, unanswered ones included; empty if no gold answers are known.

    `exact_match` has every rule that the table supports, `first_passage` (the nearest passage alone), `closed_book` (no
    passage, as many draws) and `oracle` (any candidate); `recall` is the oracle on the first n passages.
    """
    labelled = [o for o in outcomes if o.item.answers or o.item.completion]
    if not labelled:
        return {}
    chosen = {r: [o.best(r, weights) for o in labelled] for r in RULES}
    match = {
        r: _share([b is not None and o.right()[b.answer] for o, b in zip(labelled, bests, strict=True)])
        for r, bests in chosen.items()
        if r == rule or any(b is not None for b in bests)
    }
    widest = max((len(o.evidence.passages) for o in labelled), default=0)
    recall = {n: _share([any(_drawn_right(o, n)) for o in labelled]) for n in RECALL if n < widest}
    return {
        "exact_match": {
            **match,
            "first_passage": _share([_first(o) for o in labelled]),
            "closed_book": _share([o.closed is not None and correct(o.closed, o.item) for o in labelled]),
            "oracle": _share([any(o.right()) for o in labelled]),
        },
        "recall": {f"{n} passages": share for n, share in recall.items()},
        "answered": len([o for o in labelled if o.answers]),
        "questions": len(labelled),
    }


def warning_lines(reader: Reader, outcomes: Sequence[Outcome], lacking: str | None) -> list[str]:
    """Return warnings for a reader of the findings."""
    library, cut = reader.library, reader.prompter.cut
    empty = sum(not o.evidence.passages for o in outcomes)
    messages = {
        f"{lacking}: answers are ranked by how often they were drawn": bool(lacking),
        f"{library.leaks:,} documents hold a test question with its answer: "
        f"{'kept' if library.keeps_leaks else 'left out'}": library.leaks,
        f"{cut:,} prompts do not fit the context even without demonstrations": cut,
        f"no passage was found for {empty:,} of {len(outcomes):,} questions: answered without passages": empty,
    }
    return [text for text, count in messages.items() if count]


def with_source(outcome: Outcome, rule: Rule, weights: Sequence[float]) -> Demo:
    """Return the question with its `prediction` and the source: the passage, its title and URL, how many passages
    gave the same answer, and the answer's share of the marginal p(a | q) among the candidates."""
    item, best = outcome.item, outcome.choice(rule, weights)
    extra: dict[str, Any] = {**item.extra, "prediction": outcome.answer(rule, weights)}
    if best is not None and outcome.table is not None:
        passage = outcome.evidence.passages[best.passage]
        marginal = rerank.best(outcome.table, "rag")
        mass = np.exp(marginal.scores - marginal.scores.max()) if marginal is not None else np.ones(1)
        extra |= {
            "passage": passage.text, "url": passage.url, "title": passage.title,
            "rank": best.passage + 1, "score": float(best.scores[best.answer]),
            "passages": int((outcome.drawn[best.answer] > 0).sum()),
            "confidence": float(mass[best.answer] / mass.sum()),
        }  # fmt: skip
    return Demo(prompt=item.prompt, completion=item.completion, choices=item.choices, answers=item.answers, extra=extra)


def _first(outcome: Outcome) -> bool:
    """Whether the likeliest answer of the nearest passage is right."""
    if outcome.table is None:
        return False
    scores = np.where(outcome.drawn[:, 0] > 0, outcome.table.answer[:, 0], -np.inf)
    return bool(scores.size and np.isfinite(scores).any() and outcome.right()[int(scores.argmax())])


def _drawn_right(outcome: Outcome, n: int) -> list[bool]:
    drawn = outcome.drawn[:, :n] > 0
    return [is_right and bool(row.any()) for is_right, row in zip(outcome.right(), drawn, strict=True)]


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values))
