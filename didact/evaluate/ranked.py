"""Rankings by the consensus game: their accuracy under every rule, and records built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from didact.data import words
from didact.evaluate import statistics
from didact.infer import consensus, equilibrium
from didact.infer.consensus import Ranked, Rule, Wording
from didact.types import LM, Demo, Record

TIE = 1e-9  # scores closer than this are equal


def right_of(record: Demo, candidates: Sequence[str]) -> list[bool]:
    """Which candidates are the record's completion or another of its accepted answers, to the letter."""
    accepted = {words.key(a) for a in (record.completion, *(record.answers or ()))}
    return [words.key(c) in accepted for c in candidates]


def credits(
    scores: NDArray[np.float64], candidates: Sequence[Sequence[str]], records: Sequence[Demo]
) -> NDArray[np.float64]:
    """Credit in [0, 1] per question: the share of right answers among the best of `scores (questions, K)`; else 0."""
    out = np.zeros(len(records))
    for i, (record, texts) in enumerate(zip(records, candidates, strict=True)):
        row = scores[i, : len(texts)]
        if len(row) and not np.isnan(row).any():
            top = row >= row.max() - TIE
            out[i] = float(np.mean(np.array(right_of(record, texts))[top]))
    return out


def findings(ranked: Ranked, records: Sequence[Demo], game: equilibrium.Game) -> dict[str, Any]:
    """Agreement of the two sides before and after the game, and accuracy by every rule on labelled records."""
    sides = {"before": ranked.start, "after": ranked.end}
    out: dict[str, Any] = {
        "candidates": sum(map(len, ranked.candidates)),
        "agreement": {
            stage: consensus.agreement(p.generator[:, 0], p.discriminator[:, :, 0]) for stage, p in sides.items()
        },
        "moved": consensus.kl_moved(ranked.start, ranked.end),
        "undecided_verdicts": ranked.scores.undecided,
    }
    if game.lam_g and game.lam_d and ranked.scores.scored.any():
        scored = ranked.scores.scored
        first, last = (equilibrium.Policies(*(p[scored] for p in side)) for side in (ranked.start, ranked.end))
        out["residual"] = float(equilibrium.residual(first, last, game).max())
    labelled = [i for i, r in enumerate(records) if r.completion]
    if labelled:
        subset = [records[i] for i in labelled]
        texts = [ranked.candidates[i] for i in labelled]
        credit = {rule: credits(ranked.rules[rule][labelled], texts, subset) for rule in consensus.RULES}
        out["accuracy"] = {rule: statistics.mean_interval(v)._asdict() for rule, v in credit.items()}
        out["game_less_average"] = statistics.paired_interval(credit["er_d"], credit["avg"])._asdict()
        out["among_the_candidates"] = float(np.mean([any(right_of(r, t)) for r, t in zip(subset, texts, strict=True)]))
    return out


def records_of(ranked: Ranked, records: Sequence[Demo], rank: Rule) -> list[Record]:
    """Each record with its answer (`prediction`), its candidates best first with their probabilities, and the first
    and the last of them as `chosen` and `rejected`: each is also a preference record."""
    out: list[Record] = []
    for i, (record, texts) in enumerate(zip(records, ranked.candidates, strict=True)):
        extra: dict[str, Any] = {"prediction": ""}
        if ranked.scores.scored[i]:
            order = np.argsort(-ranked.rules[rank][i, : len(texts)], kind="stable")
            best = [texts[j] for j in order]
            extra = {
                "prediction": best[0],
                "ranking": best,
                "correct": [float(ranked.end.discriminator[i, j, 0]) for j in order],
                "scores": {rule: [float(ranked.rules[rule][i, j]) for j in order] for rule in consensus.RULES},
            }
            extra |= {"chosen": best[0], "rejected": best[-1]} if len(best) > 1 else {}
        out.append(replace(record, extra=record.extra | extra))
    return out


def pseudo_labels(ranked: Ranked, records: Sequence[Demo]) -> list[Record]:
    """Questions with the answer that both sides rank first, as demonstrations; the others are left out."""
    both = zip(ranked.winners("er_d"), ranked.winners("er_g"), strict=True)
    return [
        Demo(prompt=r.prompt, completion=d, choices=r.choices, extra={"role": "winner", "agreed": float(p)})
        for r, (d, g), p in zip(records, both, np.nanmax(ranked.rules["er_d"], axis=1, initial=0.0), strict=True)
        if d and d == g
    ]


def warnings(ranked: Ranked, lm: LM, records: Sequence[Demo], wording: Wording) -> list[str]:
    """One line for each limit on what the ranking shows."""
    out = []
    if missing := int((~ranked.scores.scored).sum()):
        out.append(
            f"{missing:,} of {len(records):,} questions have no answer: the budget ended, or they had no candidate"
        )
    if ranked.scores.undecided * 10 >= ranked.scores.n_questions > 0:
        out.append(
            f"{ranked.scores.undecided:,} of {ranked.scores.n_questions:,} verdicts are neither '{wording.yes}' nor "
            f"'{wording.no}' among the likeliest words and count as half of each: another wording.verify may help"
        )
    prompts = [
        consensus.fill(wording.verify, r.prompt, max(t, key=len, default=""))
        for r, t in zip(records, ranked.candidates, strict=True)
    ]
    if truncated := sum(n > lm.context for n in lm.tokens([str(p) for p in prompts])):
        out.append(
            f"{truncated:,} questions do not fit the context and are truncated on the left, question text included"
        )
    return out
