"""What reading passages was worth: right answers by rule, against the same model without them."""

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
    """Shares of questions answered rightly, those nobody could answer among them; empty where answers are not known.

    `exact_match` has every rule that the table serves, `first_passage` (the nearest passage alone), `closed_book` (no
    passage, as many draws) and `oracle` (any candidate); `recall` the oracle of the first n passages.
    """
    known = [o for o in outcomes if o.item.answers or o.item.completion]
    if not known:
        return {}
    chosen = {r: [o.best(r, weights) for o in known] for r in RULES}
    match = {
        r: _share([b is not None and o.right()[b.answer] for o, b in zip(known, row, strict=True)])
        for r, row in chosen.items()
        if r == rule or any(b is not None for b in row)
    }
    widest = max((len(o.evidence.passages) for o in known), default=0)
    recall = {n: _share([any(_drawn_right(o, n)) for o in known]) for n in RECALL if n < widest}
    return {
        "exact_match": {
            **match,
            "first_passage": _share([_first(o) for o in known]),
            "closed_book": _share([o.closed is not None and correct(o.closed, o.item) for o in known]),
            "oracle": _share([any(o.right()) for o in known]),
        },
        "recall": {f"{n} passages": share for n, share in recall.items()},
        "answered": len([o for o in known if o.answers]),
        "questions": len(known),
    }


def warned(reader: Reader, outcomes: Sequence[Outcome], lacking: str | None) -> list[str]:
    """What a reader of the findings should know."""
    library, cut = reader.library, reader.prompter.cut
    nothing = sum(not o.evidence.passages for o in outcomes)
    told = {
        f"{lacking}: answers are ranked by how often they were drawn": bool(lacking),
        f"{library.leaks:,} documents hold a test question with its answer: "
        f"{'kept' if library.keeps_leaks else 'left out'}": library.leaks,
        f"{cut:,} prompts do not fit the context even without demonstrations": cut,
        f"nothing was found for {nothing:,} of {len(outcomes):,} questions: answered without passages": nothing,
    }
    return [text for text, count in told.items() if count]


def cited(outcome: Outcome, rule: Rule, weights: Sequence[float]) -> Demo:
    """The question with its `prediction` and where that comes from: the passage, its title and address, how many
    passages gave the same answer, and the answer's share of the marginal p(a | q) among the candidates."""
    item, found = outcome.item, outcome.given(rule, weights)
    extra: dict[str, Any] = {**item.extra, "prediction": outcome.said(rule, weights)}
    if found is not None and outcome.table is not None:
        passage = outcome.evidence.passages[found.passage]
        whole = rerank.best(outcome.table, "rag")
        mass = np.exp(whole.scores - whole.scores.max()) if whole is not None else np.ones(1)
        extra |= {
            "passage": passage.text, "url": passage.url, "title": passage.title,
            "rank": found.passage + 1, "score": float(found.scores[found.answer]),
            "passages": int((outcome.drawn[found.answer] > 0).sum()),
            "confidence": float(mass[found.answer] / mass.sum()),
        }  # fmt: skip
    return Demo(prompt=item.prompt, completion=item.completion, choices=item.choices, answers=item.answers, extra=extra)


def _first(outcome: Outcome) -> bool:
    """Whether the likeliest answer of the nearest passage is right."""
    if outcome.table is None:
        return False
    scores = np.where(outcome.drawn[:, 0] > 0, outcome.table.answer[:, 0], -np.inf)
    return bool(scores.size and np.isfinite(scores).any() and outcome.right()[int(scores.argmax())])


def _drawn_right(outcome: Outcome, n: int) -> list[bool]:
    near = outcome.drawn[:, :n] > 0
    return [good and bool(row.any()) for good, row in zip(outcome.right(), near, strict=True)]


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values))
