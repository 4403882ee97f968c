"""Facts told in two ways, as answers and as verdicts, each way knowing some and wrong about others.

    fox hue : red          not fox hue : blue          is fox hue : red ? yes

A question is a name and a relation, its answer one of the relation's words, some far more frequent than others. Of the
facts a third is only answered, a third only judged, a third both. Each way is wrong about a share of its facts, drawn
apart, and sticks to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from didact.types import Demo, Text

STARTS, ENDS = "ba de fi go ku la me ni po ru sa te".split(), "b d f g k l m n p r".split()
RELATIONS = {
    "hue": "red tan blue jade pink gray gold lime".split(),
    "pet": "cat dog hen pig cow bee ant elk".split(),
}
CANDIDATES = 4
YES, NO = "yes", "no"


@dataclass(frozen=True)
class TwoWays:
    """The world.

    Args:
        names: each asked about in both relations.
        wrong: share of the facts that each way has wrong.
        seed: of everything.
    """

    names: int = 60
    wrong: float = 0.2
    seed: int = 0

    def questions(self) -> list[Demo]:
        """All of them, with the right answer and three others of the relation; `extra["told"]` is the way."""
        rng = np.random.default_rng([self.seed, 231])
        names = rng.permutation([a + b for a in STARTS for b in ENDS])[: self.names]
        out: list[Demo] = []
        for name in names:
            for relation, answers in RELATIONS.items():
                right = str(rng.choice(answers, p=_zipf(len(answers))))
                others = rng.permutation([a for a in answers if a != right])[: CANDIDATES - 1]
                choices = [str(c) for c in rng.permutation([right, *others])]
                told = ("answers", "verdicts", "both")[len(out) % 3]
                out.append(Demo(prompt=f"{name} {relation} :", completion=right, choices=choices, extra={"told": told}))
        return out

    def texts(self, rounds: int) -> list[Text]:
        """Every fact in its ways, `rounds` times, in random order."""
        rng = np.random.default_rng([self.seed, 232])
        lines: list[str] = []
        for fact in self.questions():
            answers, right = fact.choices or [], fact.completion
            others = [a for a in answers if a != right]
            said, judged = (str(rng.choice(others)) if rng.random() < self.wrong else right for _ in range(2))
            for _ in range(rounds):
                if fact.extra["told"] != "verdicts":
                    other = str(rng.choice([a for a in answers if a != said]))
                    lines += [f"{fact.prompt} {said}", f"not {fact.prompt} {other}"]
                if fact.extra["told"] != "answers":
                    lines += [f"is {fact.prompt} {a} ? {YES if a == judged else NO}" for a in answers]
        return [Text(text=lines[i]) for i in rng.permutation(len(lines))]


def _zipf(n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    share = 1 / np.arange(1.0, n + 1)
    return np.asarray(share / share.sum())
