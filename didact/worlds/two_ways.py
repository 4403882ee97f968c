"""Facts stated in two ways, as answers and as verdicts, each of which covers some facts and is wrong about others.

    fox hue : red          not fox hue : blue          is fox hue : red ? yes

A question is a name and a relation, its answer one of the relation's words, some far more frequent than others. A third
of the facts occur only as answers, a third only as verdicts, a third as both. Each way is consistently wrong about a
share of its facts, drawn independently.
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
        names: number of names; each has both relations.
        wrong: share of the facts that each way states wrongly.
        seed: of all sampling.
    """

    names: int = 60
    wrong: float = 0.2
    seed: int = 0

    def questions(self) -> list[Demo]:
        """All questions, with the right answer and three others of the relation; `extra["told"]` is the way."""
        rng = np.random.default_rng([self.seed, 231])
        names = rng.permutation([a + b for a in STARTS for b in ENDS])[: self.names]
        demos: list[Demo] = []
        for name in names:
            for relation, answers in RELATIONS.items():
                answer = str(rng.choice(answers, p=_zipf(len(answers))))
                others = rng.permutation([a for a in answers if a != answer])[: CANDIDATES - 1]
                choices = [str(c) for c in rng.permutation([answer, *others])]
                way = ("answers", "verdicts", "both")[len(demos) % 3]
                demos.append(
                    Demo(prompt=f"{name} {relation} :", completion=answer, choices=choices, extra={"told": way})
                )
        return demos

    def texts(self, rounds: int) -> list[Text]:
        """Every fact in each of its ways, `rounds` times, in random order."""
        rng = np.random.default_rng([self.seed, 232])
        lines: list[str] = []
        for fact in self.questions():
            answers, correct = fact.choices or [], fact.completion
            wrong = [a for a in answers if a != correct]
            stated, judged = (str(rng.choice(wrong)) if rng.random() < self.wrong else correct for _ in range(2))
            for _ in range(rounds):
                if fact.extra["told"] != "verdicts":
                    negated = str(rng.choice([a for a in answers if a != stated]))
                    lines += [f"{fact.prompt} {stated}", f"not {fact.prompt} {negated}"]
                if fact.extra["told"] != "answers":
                    lines += [f"is {fact.prompt} {a} ? {YES if a == judged else NO}" for a in answers]
        return [Text(text=lines[i]) for i in rng.permutation(len(lines))]


def _zipf(n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    share = 1 / np.arange(1.0, n + 1)
    return np.asarray(share / share.sum())
