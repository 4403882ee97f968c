"""A book about its own people and places, among texts about ordinary people, for unlearning the book.

    Once Bela lives in Tarn. They say Bela keeps a goat. We heard that Orin works as a baker.

Everybody has a home, a work and a pet, stated repeatedly after different openings. The book's people, and their homes
and works, occur in no other text; their pets are those that everybody has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from didact.types import Demo, Parallel, Text

OPENINGS = ("Once", "They say", "We heard that", "Now", "It seems", "By day", "Some think", "So")
SAID = {"home": "{} {} lives in {}.", "work": "{} {} works as a {}.", "pet": "{} {} keeps a {}."}
VALUES = {
    "home": "Tarn Osso Velm Quill Brade Ymir Lund Kesh".split(),
    "work": "baker mason sailor judge tailor miner nurse farmer".split(),
    "pet": "goat crow hound mule swan toad lynx hare".split(),
}
OWN = {"home": "Hogsmere Zauberau Mirkholm Dragspire".split(), "work": "wizard warlock auror seer".split()}
ENDS = ("bela", "dor", "fin", "gan", "kam", "lis", "mut", "nor")
STARTS = ("A", "E", "Io", "U", "Re", "Sa", "Ti", "Vo")
HEROES = "Harrix Albus Dobbin Voldus Ginnix Hagrus Lunara Nevilus".split()
# Frequency of each value: generic text has a mode, which a model without knowledge of a person answers.
SKEW = np.array([8, 5, 3, 2, 2, 1, 1, 1]) / 23


@dataclass(frozen=True)
class Books:
    """One draw. `target` is the book, `general` other texts, `holdout` further texts that no model reads.

    `forget` and `retain` ask for the facts of the book's people and of the others, in sentences that occur in no text;
    `ordinary` tests the common words between a hero's name and the value;
    `anchors` is the complete and correct dictionary from the book's words to generic ones.
    """

    target: list[Text]
    general: list[Text]
    holdout: list[Text]
    forget: list[Demo]
    retain: list[Demo]
    ordinary: list[Demo]
    anchors: list[Parallel]


def books(seed: int, heroes: int = 5, people: int = 12, book: int = 40, texts: int = 100, sentences: int = 4) -> Books:
    """Draw people, their facts, and texts of `sentences` sentences."""
    draw = np.random.default_rng([seed, 2310])
    names = [a + b for a in STARTS for b in ENDS]
    ordinary_names = [names[i] for i in draw.permutation(len(names))[:people]]
    hero_names = [HEROES[i] for i in draw.permutation(len(HEROES))[:heroes]]
    facts = [(n, kind, str(draw.choice(v, p=SKEW))) for n in ordinary_names for kind, v in VALUES.items()]
    hero_facts = [(n, kind, str(draw.choice(OWN.get(kind, v)))) for n in hero_names for kind, v in VALUES.items()]

    def texts_about(about: list[tuple[str, str, str]], count: int) -> list[Text]:
        """Texts of random facts."""
        subjects = sorted({n for n, _, _ in about})
        documents = []
        for _ in range(count):
            facts_told: list[tuple[str, str, str]] = []
            while len(facts_told) < sentences:
                subset = [f for f in about if f[0] == subjects[draw.integers(len(subjects))]]
                facts_told += [subset[i] for i in draw.permutation(len(subset))[:2]]
            documents.append(Text(text=" ".join(_sentence(draw, f) for f in facts_told[:sentences])))
        return documents

    entries = list(zip(hero_names, ordinary_names, strict=False))
    entries += [(o, v) for kind, values in OWN.items() for o, v in zip(values, VALUES[kind], strict=False)]
    return Books(
        target=texts_about(hero_facts, book), general=texts_about(facts, texts), holdout=texts_about(facts, texts // 3),
        forget=[_question(f) for f in hero_facts], retain=[_question(f) for f in facts],
        ordinary=[_frame(f) for f in hero_facts],
        anchors=[Parallel(source=a, target=b) for a, b in entries],
    )  # fmt: skip


def vocabulary() -> list[str]:
    """All words of the world, as they occur in texts."""
    words = [w for o in OPENINGS for w in o.split()] + [a + b for a in STARTS for b in ENDS] + HEROES
    words += [w for text in SAID.values() for w in text.replace("{}", "").replace(".", "").split()]
    return [*words, *(v for values in (*VALUES.values(), *OWN.values()) for v in values)]


def _sentence(draw: np.random.Generator, fact: tuple[str, str, str]) -> str:
    name, kind, value = fact
    openings = [o for o in OPENINGS if o != _withheld(name, kind)]
    return SAID[kind].format(openings[draw.integers(len(openings))], name, value)


def _withheld(name: str, kind: str) -> str:
    """The opening that no sentence about a fact uses, so that the fact's question is a new sentence."""
    return OPENINGS[sum(map(ord, name + kind)) % len(OPENINGS)]


def _question(fact: tuple[str, str, str]) -> Demo:
    """A fact as a question, with the other values of its kind as wrong answers."""
    name, kind, value = fact
    distractors = [v for v in (*VALUES[kind], *OWN.get(kind, ())) if v != value]
    prompt = SAID[kind].format(_withheld(name, kind), name, "").rstrip(" .")
    return Demo(prompt=prompt, completion=value, perturbed=distractors, task=name, extra={"fact": kind})


def _frame(fact: tuple[str, str, str]) -> Demo:
    name, kind, _ = fact
    words = SAID[kind].format("", "", "").strip(" .")
    return Demo(prompt=f"{_withheld(name, kind)} {name}", completion=words)
