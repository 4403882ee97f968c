"""Selective annotation: which texts of a pool to label, batch by batch, and few-shot answers from the labels.

A selector chooses the next texts from the labels so far, so that annotation may stop after any batch and go on later.
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
ROUND = 10  # texts per round of least_confidence


@dataclass
class Bank:
    """Labelled demonstrations, and how they are retrieved for an item.

    Args:
        lm: the model.
        embedder: embeds prompts.
        demos: the labelled demonstrations.
        setup: how items are prompted; `setup.shots` has one K.
        retrieval: `similar`, the most similar last; or `random`.
        on_overflow: what to do if a demonstration does not fit.
        room: most tokens of a prompt.
    """

    lm: LM
    embedder: Embedder
    demos: Sequence[Demo]
    setup: Setup
    retrieval: Literal["similar", "random"] = "similar"
    on_overflow: Overflow = "stop"
    room: int | None = None

    def ask(self, items: Sequence[Demo]) -> Outcome:
        """Answer every item after its retrieved demonstrations; those with the item's own prompt are left out."""
        nearest: list[list[int]] = []
        if self.retrieval == "similar" and self.demos and items:
            item_vectors, demo_vectors = (
                retrieval.embedded(self.embedder, [str(d.prompt) for d in rows]) for rows in (items, self.demos)
            )
            item_keys, demo_keys = ([demonstrations.key(d) for d in rows] for rows in (items, self.demos))
            nearest = retrieval.nearest(item_vectors, demo_vectors, len(self.demos), item_keys, demo_keys).lists()
        sampler = demonstrations.Sampler(self.demos, len(self.demos), self.setup.seed)
        pick = (lambda item, i, draw: nearest[i]) if self.retrieval == "similar" else sampler
        selection = Shown(pick if self.demos else sampler, self.on_overflow, self.room)
        return Asker(self.lm, self.demos, self.setup, selection).ask(items, self.setup.shots[0] if self.demos else 0)

    def confidence(self, prompts: Sequence[str], choices: Sequence[str]) -> list[float]:
        """Mean log-prob per token of the likeliest choice, or of the generated answer if there are no choices."""
        items = [
            Demo(prompt=p, completion=choices[0] if choices else "-", choices=list(choices) or None) for p in prompts
        ]
        outcome = self.ask(items)
        if choices:
            return [max(row) for row in outcome.scores["token"]]
        answers = outcome.answers[self.setup.metric]
        answered = [
            replace(item, completion=a or "-", choices=[a or "-"]) for item, a in zip(items, answers, strict=True)
        ]
        return [row[0] for row in self.ask(answered).scores["token"]]


class Chosen(NamedTuple):
    """Texts to label as indices into the pool, in order; the confidences used, if any; whether the model's budget ended
    first. There are fewer than requested if these have to be labelled before the next can be chosen."""

    places: list[int]
    confidence: list[float] | None = None
    ended: bool = False


def select(
    selector: Selector, vectors: retrieval.Vectors, count: int, labelled: Mapping[int, Demo], bank: Bank,
    prompts: Sequence[str], choices: Sequence[str], *, k: int | None = None, rho: float = 10.0,
    first: int | None = None, approximate: bool = False, seed: int = 0,
) -> Chosen:  # fmt: skip
    """Choose `count` texts of a pool, or as many as the labels so far allow."""
    n = vectors.shape[0]
    count = min(count, n)
    if selector == "random":
        return Chosen(np.random.default_rng([seed, 64]).permutation(n)[:count].tolist())
    if selector == "diversity":
        return Chosen(annotation.diverse(vectors, count, seed))
    if selector == "mfl":
        return Chosen(annotation.covering(vectors, count))

    def confidences(chosen: Sequence[int]) -> list[float]:
        return replace(bank, demos=[labelled[i] for i in chosen]).confidence(prompts, choices)

    chosen, scores = list[int](), None
    try:
        if selector == "least_confidence":
            while len(chosen) < count and all(i in labelled for i in chosen):
                scores = confidences(chosen)
                order = [i for i in np.argsort(scores, kind="stable").tolist() if i not in set(chosen)]
                chosen += order[: min(ROUND, count - len(chosen))]
            return Chosen(chosen, scores)
        graph = annotation.neighbours(vectors, k, approximate)
        if selector == "fast_votek":
            return Chosen(annotation.voted(graph, count, rho))
        chosen = annotation.voted(graph, min(count, first or max(1, round(count / 10))), rho)
        if len(chosen) == count or not all(i in labelled for i in chosen):
            return Chosen(chosen)
        scores = confidences(chosen)
    except BudgetError:
        return Chosen(chosen, scores, ended=True)
    return Chosen(annotation.voted_in_buckets(graph, chosen, scores, count, rho, seed), scores)


class Answered(NamedTuple):
    """Answers to questions, and how many demonstrations preceded each."""

    answers: list[str]
    shown: list[int]
    ended: bool = False


def answer(bank: Bank, items: Sequence[Demo]) -> Answered:
    """Answer every item after its demonstrations from the bank; answers are empty if the budget ended."""
    if not items:
        return Answered([], [])
    try:
        outcome = bank.ask(items)
    except BudgetError:
        return Answered([""] * len(items), [0] * len(items), True)
    return Answered(next(iter(outcome.answers.values())), outcome.used[:, 0].tolist())


def questions(records: Sequence[Demo], choices: Sequence[str]) -> list[Demo]:
    """Prepare records as questions: with choices, and with a placeholder if they have no completion."""
    with_choices = [replace(r, choices=r.choices or list(choices) or None) for r in records]
    return [replace(r, completion=r.completion or (r.choices[0] if r.choices else "-")) for r in with_choices]


def own_labels(pool: Sequence[Text]) -> list[Demo]:
    """Labels from pool records that have a completion, in place of an annotator."""
    rows = [(t.text, t.extra.get("completion"), t.extra.get("choices")) for t in pool]
    return [
        Demo(prompt=text, completion=str(c), choices=list(o) if isinstance(o, list) else None)
        for text, c, o in rows
        if c
    ]


def matched(pool: Sequence[str], labels: Sequence[Demo]) -> dict[int, Demo]:
    """Match labels to indices of the pool; a record with an empty completion is not labelled yet.

    Raises:
        UserError: a label's text is not in the pool, or two labels of the same text differ.
    """
    index_of: dict[str, int] = {}
    for i, text in enumerate(pool):
        index_of.setdefault(demonstrations.key(Demo(prompt=text, completion="")), i)
    out: dict[int, Demo] = {}
    for number, label in enumerate(labels, 1):
        if not label.completion:
            continue
        index = index_of.get(demonstrations.key(label))
        if index is None:
            raise UserError(f"labels: record {number} labels a text outside the pool: {str(label.prompt)[:60]!r}")
        if index in out and out[index].completion != label.completion:
            raise UserError(f"labels: record {number} has another label than an earlier record of the same text")
        out.setdefault(index, label)
    return out


def to_label(
    prompts: Sequence[str], chosen: Chosen, labelled: Mapping[int, Demo], choices: Sequence[str]
) -> list[Record]:
    """The selection in order, with the labels so far, and an empty completion where there is none."""
    out: list[Record] = []
    for number, i in enumerate(chosen.places, 1):
        label = labelled.get(i)
        extra: dict[str, Any] = {"number": number, "place": i}
        if chosen.confidence:
            extra["confidence"] = chosen.confidence[i]
        demo = label or Demo(prompt=prompts[i], completion="", choices=list(choices) or None)
        out.append(replace(demo, extra=demo.extra | extra))
    return out


def findings(
    chosen: Chosen, labelled: Mapping[int, Demo], budget: int, answered: Answered, setup: Setup
) -> dict[str, Any]:
    """What is selected and labelled, and how many demonstrations the prompts had."""
    n_labelled = sum(i in labelled for i in chosen.places)
    out: dict[str, Any] = {
        "selected": chosen.places,
        "labelled": n_labelled,
        "to_label": len(chosen.places) - n_labelled,
        "complete": n_labelled == len(chosen.places) >= 1 and not (chosen.ended or answered.ended),
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
    """What remains to be done, and what limits the answers."""
    out = []
    if chosen.ended or answered.ended:
        out.append("the budget ended before all questions were answered: this is a partial result")
    if unlabelled := sum(i not in labelled for i in chosen.places):
        budget_left = budget - len(chosen.places)
        note = f"; {budget_left:,} more are chosen by the model's confidence given these" if budget_left > 0 else ""
        out.append(f"{unlabelled:,} texts are to be labelled: fill in the completions of records.jsonl and run again "
                   f"with --labels on it{note}")  # fmt: skip
    test_keys = {demonstrations.key(r) for r in test}
    if overlapping := sum(demonstrations.key(Demo(prompt=p, completion="")) in test_keys for p in prompts):
        out.append(
            f"{overlapping:,} texts of the pool are test questions: none is its own demonstration, but the sets overlap"
        )
    if test and not any(i in labelled for i in chosen.places):
        out.append("nothing is labelled yet: the test is answered without demonstrations")
    return out
