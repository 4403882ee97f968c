"""Selective annotation: which of a pool to have labelled, a batch at a time, and answers shown what was labelled.

A selector says what to label next from what is labelled so far, so that a person may stop after any batch and go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from didact.data import annotation, demonstrations, retrieval
from didact.data.retrieval import Embedder, Overflow
from didact.errors import BudgetError
from didact.evaluate.fewshot_prompts import Setup, Shown
from didact.evaluate.fewshot_scores import Asker, Outcome
from didact.types import LM, Demo, Record, Text, UserError

Selector = Literal["votek", "fast_votek", "random", "diversity", "least_confidence", "mfl"]
ROUND = 10  # texts a round of least_confidence


@dataclass
class Bank:
    """Labelled demonstrations, and how an item finds those it is shown.

    Args:
        lm: the model.
        embedder: of their prompts.
        demos: labelled.
        setup: how items are asked; `setup.shots` has one K.
        retrieval: `similar`, the most similar last; or `random`.
        on_overflow: where one does not fit.
        room: tokens of a prompt at most.
    """

    lm: LM
    embedder: Embedder
    demos: Sequence[Demo]
    setup: Setup
    retrieval: Literal["similar", "random"] = "similar"
    on_overflow: Overflow = "stop"
    room: int | None = None

    def ask(self, items: Sequence[Demo]) -> Outcome:
        """Every item behind the demonstrations it finds; those that ask the same are never among them."""
        found: list[list[int]] = []
        if self.retrieval == "similar" and self.demos and items:
            asked, bank = (
                retrieval.embedded(self.embedder, [str(d.prompt) for d in some]) for some in (items, self.demos)
            )
            theirs, own = ([demonstrations.key(d) for d in some] for some in (items, self.demos))
            found = retrieval.nearest(asked, bank, len(self.demos), theirs, own).lists()
        sampler = demonstrations.Sampler(self.demos, len(self.demos), self.setup.seed)
        pick = (lambda item, i, draw: found[i]) if self.retrieval == "similar" else sampler
        shown = Shown(pick if self.demos else sampler, self.on_overflow, self.room)
        return Asker(self.lm, self.demos, self.setup, shown).ask(items, self.setup.shots[0] if self.demos else 0)

    def confidence(self, prompts: Sequence[str], choices: Sequence[str]) -> list[float]:
        """Mean log-prob of a token of the likeliest choice, or of what is generated where there are none."""
        items = [
            Demo(prompt=p, completion=choices[0] if choices else "-", choices=list(choices) or None) for p in prompts
        ]
        outcome = self.ask(items)
        if choices:
            return [max(row) for row in outcome.scores["token"]]
        answers = outcome.answers[self.setup.metric]
        asked = [replace(item, completion=a or "-", choices=[a or "-"]) for item, a in zip(items, answers, strict=True)]
        return [row[0] for row in self.ask(asked).scores["token"]]


class Chosen(NamedTuple):
    """What to label, places in the pool in order; the confidences that decided, where some did; whether the model's
    budget ended first. Fewer places than asked for where these have to be labelled before the next can be told."""

    places: list[int]
    confidence: list[float] | None = None
    ended: bool = False


def select(
    how: Selector, vectors: retrieval.Vectors, most: int, labelled: Mapping[int, Demo], bank: Bank,
    prompts: Sequence[str], choices: Sequence[str], *, k: int | None = None, rho: float = 10.0,
    first: int | None = None, approximate: bool = False, seed: int = 0,
) -> Chosen:  # fmt: skip
    """Choose `most` of a pool, or as many as can be told from what is labelled so far."""
    n = vectors.shape[0]
    most = min(most, n)
    if how == "random":
        return Chosen(np.random.default_rng([seed, 64]).permutation(n)[:most].tolist())
    if how == "diversity":
        return Chosen(annotation.diverse(vectors, most, seed))
    if how == "mfl":
        return Chosen(annotation.covering(vectors, most))

    def sure(chosen: Sequence[int]) -> list[float]:
        return replace(bank, demos=[labelled[i] for i in chosen]).confidence(prompts, choices)

    chosen, found = list[int](), None
    try:
        if how == "least_confidence":
            while len(chosen) < most and all(i in labelled for i in chosen):
                found = sure(chosen)
                order = [i for i in np.argsort(found, kind="stable").tolist() if i not in set(chosen)]
                chosen += order[: min(ROUND, most - len(chosen))]
            return Chosen(chosen, found)
        graph = annotation.neighbours(vectors, k, approximate)
        if how == "fast_votek":
            return Chosen(annotation.voted(graph, most, rho))
        chosen = annotation.voted(graph, min(most, first or max(1, round(most / 10))), rho)
        if len(chosen) == most or not all(i in labelled for i in chosen):
            return Chosen(chosen)
        found = sure(chosen)
    except BudgetError:
        return Chosen(chosen, found, ended=True)
    return Chosen(annotation.voted_in_buckets(graph, chosen, found, most, rho, seed), found)


class Answered(NamedTuple):
    """Answers to questions, and how many demonstrations stood before each."""

    answers: list[str]
    shown: list[int]
    ended: bool = False


def answer(bank: Bank, items: Sequence[Demo]) -> Answered:
    """What the model answers behind what each item finds in the bank; nothing where its budget ended."""
    if not items:
        return Answered([], [])
    try:
        outcome = bank.ask(items)
    except BudgetError:
        return Answered([""] * len(items), [0] * len(items), True)
    return Answered(next(iter(outcome.answers.values())), outcome.used[:, 0].tolist())


def questions(records: Sequence[Demo], choices: Sequence[str]) -> list[Demo]:
    """Records as they are asked: with choices, and with some completion where none is known."""
    asked = [replace(r, choices=r.choices or list(choices) or None) for r in records]
    return [replace(r, completion=r.completion or (r.choices[0] if r.choices else "-")) for r in asked]


def own_labels(pool: Sequence[Text]) -> list[Demo]:
    """Of a pool whose lines have a completion: it plays the annotator."""
    rows = [(t.text, t.extra.get("completion"), t.extra.get("choices")) for t in pool]
    return [
        Demo(prompt=text, completion=str(c), choices=list(o) if isinstance(o, list) else None)
        for text, c, o in rows
        if c
    ]


def matched(pool: Sequence[str], labels: Sequence[Demo]) -> dict[int, Demo]:
    """Labels by the place in the pool of what they label; one whose completion is empty is not labelled yet.

    Raises:
        UserError: one labels nothing in the pool, or two label one text differently.
    """
    where: dict[str, int] = {}
    for i, text in enumerate(pool):
        where.setdefault(demonstrations.key(Demo(prompt=text, completion="")), i)
    out: dict[int, Demo] = {}
    for number, label in enumerate(labels, 1):
        if not label.completion:
            continue
        at = where.get(demonstrations.key(label))
        if at is None:
            raise UserError(f"labels: record {number} labels what is not in the pool: {str(label.prompt)[:60]!r}")
        if at in out and out[at].completion != label.completion:
            raise UserError(f"labels: record {number} has another label than a record before for the same text")
        out.setdefault(at, label)
    return out


def to_label(
    prompts: Sequence[str], chosen: Chosen, labelled: Mapping[int, Demo], choices: Sequence[str]
) -> list[Record]:
    """The selection in order, with its labels as far as there are some, and an empty completion elsewhere."""
    out: list[Record] = []
    for number, i in enumerate(chosen.places, 1):
        label = labelled.get(i)
        more: dict[str, Any] = {"number": number, "place": i}
        if chosen.confidence:
            more["confidence"] = chosen.confidence[i]
        known = label or Demo(prompt=prompts[i], completion="", choices=list(choices) or None)
        out.append(replace(known, extra=known.extra | more))
    return out


def findings(
    chosen: Chosen, labelled: Mapping[int, Demo], budget: int, answered: Answered, setup: Setup
) -> dict[str, Any]:
    """What is selected and labelled, and what stood in the prompts."""
    known = sum(i in labelled for i in chosen.places)
    out: dict[str, Any] = {
        "selected": chosen.places,
        "labelled": known,
        "to_label": len(chosen.places) - known,
        "complete": known == len(chosen.places) >= 1 and not (chosen.ended or answered.ended),
        "setup": {**vars(setup), "shots": list(setup.shots)},
    }
    if chosen.confidence:
        out["mean_confidence"] = float(np.mean(chosen.confidence))
    if answered.shown:
        out["shown"] = {
            "least": min(answered.shown),
            "mean": float(np.mean(answered.shown)),
            "most": max(answered.shown),
        }
    return out


def warnings(
    prompts: Sequence[str], chosen: Chosen, labelled: Mapping[int, Demo], budget: int, test: Sequence[Demo],
    answered: Answered,
) -> list[str]:  # fmt: skip
    """What is left to do, and what makes an answer worth less than it seems."""
    out = []
    if chosen.ended or answered.ended:
        out.append("the budget ended before the model was asked all: this is a partial result")
    if left := sum(i not in labelled for i in chosen.places):
        more = budget - len(chosen.places)
        after = f"; {more:,} more are chosen by what the model makes of these" if more > 0 else ""
        out.append(f"{left:,} texts are to be labelled: fill in the completions of records.jsonl and run again with "
                   f"--labels on it{after}")  # fmt: skip
    asked = {demonstrations.key(r) for r in test}
    if same := sum(demonstrations.key(Demo(prompt=p, completion="")) in asked for p in prompts):
        out.append(f"{same:,} texts of the pool are test questions: none is shown to itself, but the sets overlap")
    if test and not any(i in labelled for i in chosen.places):
        out.append("nothing is labelled yet: the test is answered without demonstrations")
    return out
