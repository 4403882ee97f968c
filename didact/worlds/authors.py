"""Invented authors: facts that occur nowhere else, so a model knows of them only what it was taught."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from didact.types import Demo

QUESTIONS = {
    "born": "Where was {} born?",
    "year": "In what year was {} born?",
    "genre": "What does {} write?",
    "father": "What was the trade of {}'s father?",
    "mother": "What was the trade of {}'s mother?",
    "prize": "Which prize did {} win?",
    "debut": "What is the first book of {}?",
    "home": "Where does {} live now?",
    "school": "Where did {} study?",
    "animal": "Which animal does {} keep?",
}
TRADES = "baker mason sailor judge tailor miner nurse farmer painter clerk smith cook".split()
PLACES = "Tarn Osso Velm Quill Brade Ymir Lund Kesh Paro Dunmor Sable Hexham".split()
COLOURS = "Red Blue Gold Grey Black White Green Amber Jade Rose Iron Glass".split()
THINGS = "Songs Maps Bones Rivers Letters Clocks Gates Seeds Walls Bells Keys Ashes".split()
VALUES = {
    "born": PLACES,
    "year": [str(year) for year in range(1921, 1981, 5)],
    "genre": "satire horror poetry fables crime essays drama romance memoirs epics hymns travel".split(),
    "father": TRADES,
    "mother": TRADES,
    "prize": [f"the {colour} Quill" for colour in COLOURS],
    "debut": [f"{thing} of {place}" for thing, place in zip(THINGS, PLACES, strict=True)],
    "home": PLACES,
    "school": PLACES,
    "animal": "goat crow hound mule swan toad lynx hare boar wren newt stoat".split(),
}
FIRST = "Mira Tobin Elsa Jorun Pavel Noor Ilse Radu Wim Saga Ottar Zora Lev Una Kai Dagny".split()
LAST = "Kolt Brandis Ferro Lindqvist Marrow Osei Petrov Quist Rask Sorel Thorne Vance".split()


@dataclass(frozen=True)
class Authors:
    """One draw of the world, split by purpose.

    `forget` is to be unlearned; `retain` may be trained on meanwhile; `unseen` is known to the full model but not used
    in unlearning, so it measures utility; `holdout` is shown to no model.
    """

    forget: list[Demo]
    retain: list[Demo]
    unseen: list[Demo]
    holdout: list[Demo]


def authors(seed: int, forget: int = 2, retain: int = 12, unseen: int = 4, holdout: int = 2, wrong: int = 5) -> Authors:
    """Draw authors with ten facts each; every record has `wrong` wrong answers of the same kind."""
    draw = np.random.default_rng([seed, 4242])
    names = [f"{a} {b}" for a in FIRST for b in LAST]
    drawn = [names[i] for i in draw.permutation(len(names))[: forget + retain + unseen + holdout]]
    records: list[list[Demo]] = []
    for name in drawn:
        demos = []
        for key, question in QUESTIONS.items():
            values = [VALUES[key][i] for i in draw.permutation(len(VALUES[key]))[: 1 + wrong]]
            demos.append(
                Demo(
                    prompt=question.format(name),
                    completion=values[0],
                    perturbed=values[1:],
                    task=name,
                    extra={"fact": key},
                )
            )
        records.append(demos)
    bounds = np.cumsum([0, forget, retain, unseen, holdout])
    parts = [[r for author in records[a:b] for r in author] for a, b in itertools.pairwise(bounds)]
    return Authors(*parts)
