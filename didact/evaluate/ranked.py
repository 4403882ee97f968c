"""What rankings by the consensus game are worth: accuracy by every rule, and records made of them."""

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

TIE = 1e-9  # scores nearer than this are equal


def right_of(record: Demo, candidates: Sequence[str]) -> list[bool]:
    """Which candidates are the record's completion or another of its accepted answers, to the letter."""
    accepted = {words.key(a) for a in (record.completion, *(record.answers or ()))}
    return [words.key(c) in accepted for c in candidates]


def credits(
    scores: NDArray[np.float64], candidates: Sequence[Sequence[str]], records: Sequence[Demo]
) -> NDArray[np.float64]:
    """In [0, 1] for every question: 1 where the best of `scores (questions, K)` is right, 0 where there is none."""
    out = np.zeros(len(records))
    for i, (record, texts) in enumerate(zip(records, candidates, strict=True)):
        known = scores[i, : len(texts)]
        if len(known) and not np.isnan(known).any():
            top = known >= known.max() - TIE
            out[i] = float(np.mean(np.array(right_of(record, texts))[top]))
    return out


def findings(made: Ranked, records: Sequence[Demo], game: equilibrium.Game) -> dict[str, Any]:
    """How the two sides came together; and the accuracy by every rule on the records whose answer is known."""
    sides = {"before": made.start, "after": made.end}
    out: dict[str, Any] = {
        "candidates": sum(map(len, made.candidates)),
        "agreement": {
            when: consensus.agreement(p.generator[:, 0], p.discriminator[:, :, 0]) for when, p in sides.items()
        },
        "moved": consensus.moved(made.start, made.end),
        "undecided_verdicts": made.found.undecided,
    }
    if game.lam_g and game.lam_d and made.found.known.any():
        at = made.found.known
        first, last = (equilibrium.Policies(*(p[at] for p in side)) for side in (made.start, made.end))
        out["residual"] = float(equilibrium.residual(first, last, game).max())
    labelled = [i for i, r in enumerate(records) if r.completion]
    if labelled:
        some = [records[i] for i in labelled]
        texts = [made.candidates[i] for i in labelled]
        right = {rule: credits(made.rules[rule][labelled], texts, some) for rule in consensus.RULES}
        out["accuracy"] = {rule: statistics.mean_interval(v)._asdict() for rule, v in right.items()}
        out["game_less_average"] = statistics.paired_interval(right["er_d"], right["avg"])._asdict()
        out["among_the_candidates"] = float(np.mean([any(right_of(r, t)) for r, t in zip(some, texts, strict=True)]))
    return out


def records_of(made: Ranked, records: Sequence[Demo], rank: Rule) -> list[Record]:
    """Each record with its answer (`prediction`), its candidates best first with their probabilities, and the first
    and the last of them as `chosen` and `rejected`: a line also reads as a preference."""
    out: list[Record] = []
    for i, (record, texts) in enumerate(zip(records, made.candidates, strict=True)):
        more: dict[str, Any] = {"prediction": ""}
        if made.found.known[i]:
            order = np.argsort(-made.rules[rank][i, : len(texts)], kind="stable")
            best = [texts[j] for j in order]
            more = {
                "prediction": best[0],
                "ranking": best,
                "correct": [float(made.end.discriminator[i, j, 0]) for j in order],
                "scores": {rule: [float(made.rules[rule][i, j]) for j in order] for rule in consensus.RULES},
            }
            more |= {"chosen": best[0], "rejected": best[-1]} if len(best) > 1 else {}
        out.append(replace(record, extra=record.extra | more))
    return out


def pseudo_labels(made: Ranked, records: Sequence[Demo]) -> list[Record]:
    """Questions with the answer that both sides rank first, as demonstrations; the others are left out."""
    both = zip(made.winners("er_d"), made.winners("er_g"), strict=True)
    return [
        Demo(prompt=r.prompt, completion=d, choices=r.choices, extra={"role": "winner", "agreed": float(p)})
        for r, (d, g), p in zip(records, both, np.nanmax(made.rules["er_d"], axis=1, initial=0.0), strict=True)
        if d and d == g
    ]


def warnings(made: Ranked, lm: LM, records: Sequence[Demo], wording: Wording) -> list[str]:
    """One line for each way in which the ranking says less than it seems to."""
    out = []
    if lost := int((~made.found.known).sum()):
        out.append(f"{lost:,} of {len(records):,} questions have no answer: the budget ended, or they had no candidate")
    if made.found.undecided * 10 >= made.found.asked > 0:
        out.append(
            f"{made.found.undecided:,} of {made.found.asked:,} verdicts are neither '{wording.yes}' nor "
            f"'{wording.no}' among the likeliest words and count as half of each: another wording.verify may help"
        )
    prompts = [
        consensus.worded(wording.verify, r.prompt, max(t, key=len, default=""))
        for r, t in zip(records, made.candidates, strict=True)
    ]
    if cut := sum(n > lm.context for n in lm.tokens([str(p) for p in prompts])):
        out.append(
            f"{cut:,} questions do not fit the context and are cut on their left, what is asked of them included"
        )
    return out
