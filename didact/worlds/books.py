"""A book about people and places of its own, among texts about ordinary people: what each model should know is known.

    Once Bela lives in Tarn. They say Bela keeps a goat. We heard that Orin works as a baker.

Everybody has a home, a work and a pet, told again and again behind different openings. People of the book, and the
homes and works they have, stand in no other text; their pets are everybody's.
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
# How often each value is somebody's: generic text has a mode, which is what a model that knows nothing says.
SKEW = np.array([8, 5, 3, 2, 2, 1, 1, 1]) / 23


@dataclass(frozen=True)
class Books:
    """One draw. `target` is the book, `general` other texts, `holdout` more of those that no model reads.

    `forget` and `retain` ask for the facts of the book's people and of the others, in sentences no text has;
    `ordinary` is what the first say between a name and its answer, words that are everybody's;
    `anchors` is the complete and true dictionary.
    """

    target: list[Text]
    general: list[Text]
    holdout: list[Text]
    forget: list[Demo]
    retain: list[Demo]
    ordinary: list[Demo]
    anchors: list[Parallel]


def books(seed: int, heroes: int = 5, people: int = 12, book: int = 40, texts: int = 100, sentences: int = 4) -> Books:
    """Draw people, their facts, and texts of so many sentences."""
    draw = np.random.default_rng([seed, 2310])
    names = [a + b for a in STARTS for b in ENDS]
    ordinary = [names[i] for i in draw.permutation(len(names))[:people]]
    known = [HEROES[i] for i in draw.permutation(len(HEROES))[:heroes]]
    facts = [(n, kind, str(draw.choice(v, p=SKEW))) for n in ordinary for kind, v in VALUES.items()]
    own = [(n, kind, str(draw.choice(OWN.get(kind, v)))) for n in known for kind, v in VALUES.items()]

    def told(about: list[tuple[str, str, str]], count: int) -> list[Text]:
        """Texts that go through all facts before any comes again; two sentences running are about one person."""
        people_ = sorted({n for n, _, _ in about})
        out = []
        for _ in range(count):
            said: list[tuple[str, str, str]] = []
            while len(said) < sentences:
                mine = [f for f in about if f[0] == people_[draw.integers(len(people_))]]
                said += [mine[i] for i in draw.permutation(len(mine))[:2]]
            out.append(Text(text=" ".join(_sentence(draw, f) for f in said[:sentences])))
        return out

    types = list(zip(known, ordinary, strict=False))
    types += [(o, v) for kind, values in OWN.items() for o, v in zip(values, VALUES[kind], strict=False)]
    return Books(
        target=told(own, book), general=told(facts, texts), holdout=told(facts, texts // 3),
        forget=[_asked(f) for f in own], retain=[_asked(f) for f in facts],
        ordinary=[_ordinary(f) for f in own],
        anchors=[Parallel(source=a, target=b) for a, b in types],
    )  # fmt: skip


def vocabulary() -> list[str]:
    """Every word there is, as it stands in texts."""
    words = [w for o in OPENINGS for w in o.split()] + [a + b for a in STARTS for b in ENDS] + HEROES
    words += [w for text in SAID.values() for w in text.replace("{}", "").replace(".", "").split()]
    return [*words, *(v for values in (*VALUES.values(), *OWN.values()) for v in values)]


def _sentence(draw: np.random.Generator, fact: tuple[str, str, str]) -> str:
    name, kind, value = fact
    told = [o for o in OPENINGS if o != _withheld(name, kind)]
    return SAID[kind].format(told[draw.integers(len(told))], name, value)


def _withheld(name: str, kind: str) -> str:
    """The opening that stands before no sentence of a fact, so that its question is a new sentence."""
    return OPENINGS[sum(map(ord, name + kind)) % len(OPENINGS)]


def _asked(fact: tuple[str, str, str]) -> Demo:
    """A fact as a question, with the other values of its kind."""
    name, kind, value = fact
    others = [v for v in (*VALUES[kind], *OWN.get(kind, ())) if v != value]
    prompt = SAID[kind].format(_withheld(name, kind), name, "").rstrip(" .")
    return Demo(prompt=prompt, completion=value, perturbed=others, task=name, extra={"fact": kind})


def _ordinary(fact: tuple[str, str, str]) -> Demo:
    name, kind, _ = fact
    words = SAID[kind].format("", "", "").strip(" .")
    return Demo(prompt=f"{_withheld(name, kind)} {name}", completion=words)
